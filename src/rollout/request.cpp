#include "rollout/request.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "core/error.hpp"

namespace sl {

void SamplingParameters::validate() const {
  const auto refuse = [](std::string_view name, auto value, std::string_view range) {
    throw InputError(fmt::format("{} is not possible", value), name, fmt::format("it must be {}", range));
  };
  if (!(temperature >= 0) || std::isinf(temperature))
    refuse("temperature", temperature, "0 (greedy) or more");
  if (!(top_p > 0 && top_p <= 1)) refuse("top_p", top_p, "above 0 and at most 1");
  if (top_k < 0) refuse("top_k", top_k, "0 (off) or more");
  if (!(repetition_penalty > 0) || std::isinf(repetition_penalty))
    refuse("repetition_penalty", repetition_penalty, "above 0");
  if (max_tokens < 1) refuse("max_tokens", max_tokens, "at least 1");
  if (min_tokens < 0 || min_tokens > max_tokens)
    refuse("min_tokens", min_tokens, fmt::format("between 0 and max_tokens ({})", max_tokens));
  if (beams < 1) refuse("beams", beams, "1 (off) or more");
  if (!std::isfinite(length_penalty)) refuse("length_penalty", length_penalty, "a finite number");
  for (const std::string& text : stop) {
    if (text.empty()) refuse("stop", "an empty string", "at least one character");
  }
}

int64_t Request::beam_candidates() const {
  const int64_t ends = sampling.ignore_end ? 0 : std::ssize(end_tokens);
  return sampling.beams * std::max<int64_t>(2, 1 + ends);
}

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::hopeless:
      return "hopeless";
    case FinishReason::context:
      return "context";
  }
  throw BugError("unknown finish reason");
}

}  // namespace sl
