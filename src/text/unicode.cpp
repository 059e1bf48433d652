#include "text/unicode.hpp"

namespace sl {

int utf8_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead < 0xE0) return 2;
  if (lead >= 0xE0 && lead < 0xF0) return 3;
  if (lead >= 0xF0 && lead < 0xF5) return 4;
  return 0;
}

CodePoint decode_at(std::string_view text, size_t at) {
  const CodePoint malformed{replacement_character, 1};
  const auto lead = static_cast<unsigned char>(text[at]);
  if (lead < 0x80) return {lead, 1};
  const int length = utf8_length(lead);
  if (length == 0 || at + static_cast<size_t>(length) > text.size()) return malformed;
  char32_t value = lead & (0xFFU >> (length + 1));
  for (int i = 1; i < length; ++i) {
    const auto byte = static_cast<unsigned char>(text[at + static_cast<size_t>(i)]);
    if ((byte & 0xC0U) != 0x80U) return malformed;
    value = (value << 6U) | (byte & 0x3FU);
  }
  const bool overlong = (length == 3 && value < 0x800) || (length == 4 && value < 0x10000);
  const bool surrogate = value >= 0xD800 && value < 0xE000;
  if (overlong || surrogate || value > 0x10FFFF) return malformed;
  return {value, length};
}

void append_utf8(std::string& text, char32_t value) {
  const auto tail = [&](unsigned shift) {
    text.push_back(static_cast<char>(0x80U | ((value >> shift) & 0x3FU)));
  };
  if (value < 0x80) {
    text.push_back(static_cast<char>(value));
  } else if (value < 0x800) {
    text.push_back(static_cast<char>(0xC0U | (value >> 6U)));
    tail(0);
  } else if (value < 0x10000) {
    text.push_back(static_cast<char>(0xE0U | (value >> 12U)));
    tail(6), tail(0);
  } else {
    text.push_back(static_cast<char>(0xF0U | (value >> 18U)));
    tail(12), tail(6), tail(0);
  }
}

std::optional<size_t> first_invalid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_at(text, at);
    // A genuine U+FFFD takes three bytes, so one byte of it is always a malformed one.
    if (point.value == replacement_character && point.length == 1) return at;
    at += static_cast<size_t>(point.length);
  }
  return std::nullopt;
}

int64_t count_code_points(std::string_view text) {
  int64_t count = 0;
  for (size_t at = 0; at < text.size(); ++count) at += static_cast<size_t>(decode_at(text, at).length);
  return count;
}

bool is_space(char32_t value) {
  return (value >= 0x09 && value <= 0x0D) || (value >= 0x1C && value <= 0x20) || value == 0x85 ||
         value == 0xA0 || value == 0x1680 || (value >= 0x2000 && value <= 0x200A) || value == 0x2028 ||
         value == 0x2029 || value == 0x202F || value == 0x205F || value == 0x3000;
}

bool is_cjk(char32_t value) {
  return (value >= 0x4E00 && value <= 0x9FFF) || (value >= 0x3000 && value <= 0x303F) ||
         (value >= 0xFF00 && value <= 0xFFEF);
}

std::string_view trim_end(std::string_view text) {
  size_t end = 0;  // after the last character that is not white space
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_at(text, at);
    at += static_cast<size_t>(point.length);
    if (!is_space(point.value)) end = at;
  }
  return text.substr(0, end);
}

std::string_view trim(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const CodePoint point = decode_at(text, at);
    if (!is_space(point.value)) break;
    at += static_cast<size_t>(point.length);
  }
  return trim_end(text.substr(at));
}

}  // namespace sl
