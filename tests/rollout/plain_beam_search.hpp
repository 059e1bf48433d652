// Beam search by its definition: whole token sequences, all continuations sorted.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "rollout/request.hpp"

namespace sl::test {

struct PlainBeam {
  std::vector<int32_t> tokens;  // prompt and completion
  double sum = 0.0;
  double score = 0.0;  // of those that have ended
};

// The completion with the best score. `scores_after` gives the score of every token after a sequence, of
// which the `generated` last ones are no prompt.
inline PlainBeam plain_beam_search(
    const Request& request,
    const std::function<std::vector<double>(const std::vector<int32_t>&, int64_t generated)>& scores_after) {
  const auto width = static_cast<size_t>(request.sampling.beams);
  std::vector<PlainBeam> beams = {{.tokens = request.prompt}};
  std::vector<PlainBeam> ended;
  for (int64_t length = 1;; ++length) {
    std::vector<PlainBeam> all;
    for (const PlainBeam& beam : beams) {
      const std::vector<double> scores = scores_after(beam.tokens, length - 1);
      for (size_t token = 0; token < scores.size(); ++token) {
        if (std::isinf(scores[token])) continue;
        all.push_back({.tokens = beam.tokens, .sum = beam.sum + scores[token]});
        all.back().tokens.push_back(static_cast<int32_t>(token));
      }
    }
    std::ranges::stable_sort(all, std::ranges::greater(), &PlainBeam::sum);
    beams.clear();
    for (size_t rank = 0; rank < all.size(); ++rank) {
      const bool ends =
          length == request.sampling.max_tokens ||
          std::ranges::find(request.end_tokens, all[rank].tokens.back()) != request.end_tokens.end();
      if (!ends && beams.size() < width) beams.push_back(all[rank]);
      if (!ends || rank >= width) continue;
      all[rank].score =
          all[rank].sum / std::pow(static_cast<double>(length), request.sampling.length_penalty);
      ended.push_back(all[rank]);
    }
    std::ranges::stable_sort(ended, std::ranges::greater(), &PlainBeam::score);
    if (ended.size() > width) ended.resize(width);
    if (beams.empty()) return ended.front();
    const double best =
        beams.front().sum / std::pow(static_cast<double>(length), request.sampling.length_penalty);
    if (ended.size() == width && best <= ended.back().score) return ended.front();
  }
}

}  // namespace sl::test
