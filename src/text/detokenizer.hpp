// Tokens to text while they are generated, a character at a time.
#pragma once

#include "text/tokenizer.hpp"

#include <cstdint>
#include <string>
#include <string_view>

namespace sl {

// `bytes` with each malformed stretch (a maximal beginning of a character, or a single byte) replaced by
// U+FFFD.
std::string replace_malformed(std::string_view bytes);

// Turns tokens into valid UTF-8. A character whose bytes span tokens is held back until it is complete; what
// cannot become one is given out as U+FFFD. All that push() and flush() returned is
// replace_malformed(decode(tokens)).
class IncrementalDetokenizer {
 public:
  // The tokenizer outlives this object.
  explicit IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special = true);

  // The text that became complete with this token; often empty for scripts of several bytes a character.
  std::string push(int32_t token);
  // At the end of generation: what was still held back, as U+FFFD. Ready for another text afterwards.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;  // beginning of a character, at most 3 bytes between calls
};

}  // namespace sl
