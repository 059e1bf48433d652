// UTF-8 and the character classes that METHOD.md's rules speak of. Pure functions; nothing here allocates but
// trim's callers. Malformed bytes decode as U+FFFD, one byte each, so that every function is total.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace sl {

inline bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

struct CodePoint {
  char32_t value = 0;
  int length = 0;  // bytes it takes in the text: 1-4
};

inline constexpr char32_t replacement_character = 0xFFFD;

// The code point that begins at `at` (< text.size()). Overlong forms, surrogates and values past U+10FFFF are
// malformed.
CodePoint decode_at(std::string_view text, size_t at);

// Bytes that a character beginning with `lead` takes by its first byte alone; 0 when no character begins so.
int utf8_length(unsigned char lead);

void append_utf8(std::string& text, char32_t value);

// Byte offset of the first malformed byte; nothing when the text is valid UTF-8.
std::optional<size_t> first_invalid_utf8(std::string_view text);

int64_t count_code_points(std::string_view text);

// White space as Python's str.split() sees it: Unicode's White_Space and the four separators U+001C-001F.
bool is_space(char32_t value);

// The characters METHOD.md counts as a word each: U+4E00-9FFF, U+3000-303F, U+FF00-FFEF.
bool is_cjk(char32_t value);

// Without white space (is_space) at the end; at both ends.
std::string_view trim_end(std::string_view text);
std::string_view trim(std::string_view text);

}  // namespace sl
