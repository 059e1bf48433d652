#include "text/detokenizer.hpp"

#include "text/unicode.hpp"

namespace sl {
namespace {

// How far the bytes from `at` look like the beginning of a character (at least 1).
struct Beginning {
  size_t length = 1;
  bool may_complete = false;  // they reach the end of the text and more bytes could make a character of them
};

Beginning beginning_at(std::string_view bytes, size_t at) {
  const auto lead = static_cast<unsigned char>(bytes[at]);
  const auto wanted = static_cast<size_t>(utf8_length(lead));
  if (wanted == 0) return {};
  size_t length = 1;
  for (; length < wanted && at + length < bytes.size(); ++length) {
    const auto byte = static_cast<unsigned char>(bytes[at + length]);
    unsigned low = 0x80;
    unsigned high = 0xBF;
    if (length == 1) {  // the second byte excludes overlong forms, surrogates and values past U+10FFFF
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (byte < low || byte > high) return {length, false};
  }
  return {length, length < wanted};
}

// Moves all of `bytes` that is decided to the result; with `final`, everything.
std::string take_complete(std::string& bytes, bool final) {
  std::string text;
  size_t at = 0;
  while (at < bytes.size()) {
    const CodePoint point = decode_at(bytes, at);
    if (point.value != replacement_character || point.length > 1) {
      text.append(bytes, at, static_cast<size_t>(point.length));
      at += static_cast<size_t>(point.length);
      continue;
    }
    const Beginning beginning = beginning_at(bytes, at);
    if (beginning.may_complete && !final) break;
    append_utf8(text, replacement_character);
    at += beginning.length;
  }
  bytes.erase(0, at);
  return text;
}

}  // namespace

std::string replace_malformed(std::string_view bytes) {
  std::string copy(bytes);
  return take_complete(copy, true);
}

IncrementalDetokenizer::IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

std::string IncrementalDetokenizer::push(int32_t token) {
  if (skip_special_ && tokenizer_->is_special(token)) return {};
  held_ += tokenizer_->token_bytes(token);
  return take_complete(held_, false);
}

std::string IncrementalDetokenizer::flush() { return take_complete(held_, true); }

}  // namespace sl
