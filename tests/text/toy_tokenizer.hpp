// A tokenizer small enough to know by heart, for tests: all 256 bytes in the order of the byte-level
// alphabet, a few merges, and the control tokens of both chat families.
#pragma once

#include "text/byte_level.hpp"
#include "text/tokenizer.hpp"
#include "text/unicode.hpp"

#include <string>

namespace sl {

inline TokenizerParts toy_parts() {
  TokenizerParts parts;
  parts.where = "toy.gguf";
  parts.pre = "smollm";
  for (char32_t value = 0; value < 256 + 68; ++value) {
    std::string character;
    append_utf8(character, value);
    if (bytes_of_byte_level(character)) parts.tokens.push_back(character);
  }
  parts.token_types.assign(parts.tokens.size(), 1);
  for (const char* merge : {"h e", "l l", "he ll", "hell o", "a a", "aa aa", "Ġ hello"}) {
    const std::string line = merge;
    parts.merges.push_back(line);
    parts.tokens.push_back(line.substr(0, line.find(' ')) + line.substr(line.find(' ') + 1));
    parts.token_types.push_back(1);
  }
  for (const char* control : {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>",
                              "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}) {
    parts.tokens.emplace_back(control);
    parts.token_types.push_back(3);
  }
  parts.bos = static_cast<int32_t>(parts.tokens.size()) - 4;
  parts.eos = static_cast<int32_t>(parts.tokens.size()) - 7;
  return parts;
}

}  // namespace sl
