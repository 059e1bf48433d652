// The choices of a beam search, apart from any model: what Transformers' generate does with num_beams and
// early_stopping=False (GenerationMixin._beam_search). The same tokens but for scores that are equal up to
// rounding; sums are in double here.
//
// A beam is a beginning of the completion with the sum of the log-probabilities of its tokens. In every step
// the beams offer their best next tokens; of the best continuations of all, those that end and are among the
// first `beams` become hypotheses, the first `beams` that do not end are the beams of the next step.
// Hypotheses are ranked by sum / length^length_penalty, the length being that of the completion in tokens,
// the ending one included; the best `beams` are kept. The search is done when that many are there and the
// best beam, at its present length, is not better than the worst of them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "rollout/request.hpp"
#include "rollout/step_model.hpp"

namespace sl {

// A completion that has ended.
struct Hypothesis {
  std::vector<int32_t> tokens;
  std::string text;
  FinishReason finish = FinishReason::stop;
  double score = 0.0;
};

class BeamSearch {
 public:
  // A beam `beam` of this step with a token behind, and the sum of all log-probabilities.
  struct Continuation {
    int32_t beam = 0, token = 0;
    double sum = 0.0;
  };

  // Begins with one beam without tokens.
  explicit BeamSearch(const Request& request);

  int64_t width() const { return width_; }
  // The beams of this step: of each, what it went on from.
  const std::vector<Continuation>& beams() const { return beams_; }
  double score(double sum, int64_t length) const;

  // The best next tokens of a beam of this step, best first.
  void offer(int64_t beam, std::span<const BestToken> best);
  bool all_have_offered() const { return offers_ == beams_.size(); }
  // The best continuations offered, best first. One at least.
  std::vector<Continuation> best_continuations() const;

  void add(Hypothesis hypothesis);
  // The beams of the next step, best first.
  void go_on(std::vector<Continuation> beams);
  // `length`: tokens of the beams.
  bool done(int64_t length) const;
  // Best first.
  const std::vector<Hypothesis>& hypotheses() const { return hypotheses_; }

 private:
  int64_t width_, candidates_;
  double length_penalty_;
  std::vector<Continuation> beams_, offered_;
  size_t offers_ = 0;
  std::vector<Hypothesis> hypotheses_;
};

}  // namespace sl
