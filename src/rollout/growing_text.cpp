#include "rollout/growing_text.hpp"

#include <algorithm>

namespace sl {

bool GrowingText::push(const Request& request, int32_t token, int64_t generated) {
  const bool is_end = std::ranges::find(request.end_tokens, token) != request.end_tokens.end();
  // What is left of an unfinished character may be malformed, but it holds no stop string.
  if (is_end && !request.sampling.ignore_end) return true;
  return text_.append(detokenizer_.push(token), generated > request.sampling.min_tokens);
}

std::string GrowingText::finish() {
  if (!text_.stopped()) text_.append(detokenizer_.flush(), false);
  return text_.text();
}

}  // namespace sl
