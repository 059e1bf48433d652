// What a flow asks of the engine, and what it gets back.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/repetition.hpp"

namespace sl {

// Divided by less, logits may overflow, and the likeliest token is all but certain. The same number as in
// vLLM.
constexpr float least_temperature = 1e-5F;

// METHOD.md's decoding defaults.
struct SamplingParameters {
  float temperature = 0.7F;  // 0: greedy, and so is less than least_temperature
  float top_p = 0.8F;
  int32_t top_k = 20;               // 0: off
  float repetition_penalty = 1.1F;  // over prompt and output tokens; 1: off
  int64_t max_tokens = 16384;       // new tokens
  int64_t min_tokens = 0;           // new tokens before an end token or a stop string may end the text
  // Above 1: beam search (BeamSearch) instead of drawing; temperature, top-p and top-k do not matter then.
  int64_t beams = 1;
  double length_penalty = 1.0;  // a beam search wants the largest sum of log-probabilities / length^this
  std::vector<std::string> stop = {"\n\n---", "\n\n\n", "\n---", "---"};
  bool ignore_end = false;  // end tokens are tokens like any other

  // InputError names the first parameter that is out of its range.
  void validate() const;
};

// Why a completion ended. stop: an end token or a stop string; length: max_tokens; hopeless: the text already
// breaks the rule of repetition for good; context: the model's positions, or the pool of pages, are used up.
enum class FinishReason { stop, length, hopeless, context };
std::string_view finish_reason_name(FinishReason reason);

struct Request {
  std::vector<int32_t> prompt;  // at least one token
  int32_t adapter = -1;         // index of the model's adapters; -1: the bare base model
  SamplingParameters sampling;
  uint64_t stream = 0;              // stream_of(address): with a token's position it keys the draw
  std::vector<int32_t> end_tokens;  // any of them ends the text
  std::optional<Language> watch;    // end as hopeless when no further text could pass the rule of repetition
  std::string watched_prefix;       // text of the answer before the completion, for the watch
  // Groups of tokens to choose between instead of sampling: the group of the largest summed probability (of
  // the plain softmax, without penalty or filters) wins, and its first token is the completion. Empty: none.
  std::vector<std::vector<int32_t>> choices;

  bool has_beams() const { return sampling.beams > 1; }
  // How many continuations of all beams together a step of beam search looks at, and how many best tokens it
  // wants of each beam: as Transformers, enough to go on with when all end tokens are among them.
  int64_t beam_candidates() const;
};

struct Completion {
  std::string text;             // without the stop string that ended it; special tokens leave no text
  std::vector<int32_t> tokens;  // all that were generated, the ending one included
  FinishReason finish = FinishReason::stop;
  int32_t choice = -1;  // index of the winning group of Request::choices
  double score = 0.0;   // of a beam search: the largest sum of log-probabilities / length^length_penalty
  int64_t prompt_tokens = 0;
  int64_t shared_tokens = 0;  // of the prompt: found in the prefix tree instead of computed
};

}  // namespace sl
