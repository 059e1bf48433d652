#include "text/added_tokens.hpp"

#include "text/unicode.hpp"

#include <utf8proc.h>

#include <algorithm>

namespace sl {
namespace {

// \w of the regular expressions by which Hugging Face's library decides on single_word.
bool is_word_character(char32_t value) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(value));
  switch (category) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return value == 0x200C || value == 0x200D;  // the joiners
  }
}

size_t previous_start(std::string_view text, size_t end) {
  size_t start = end - 1;
  while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0U) == 0x80U) --start;
  return start;
}

// White_Space, which lacks the separators U+001C-001F of is_space.
bool is_white_space(char32_t value) { return is_space(value) && !(value >= 0x1C && value <= 0x1F); }

bool stands_alone(std::string_view text, size_t start, size_t end) {
  const bool free_before =
      start == 0 || !is_word_character(decode_at(text, previous_start(text, start)).value);
  const bool free_after = end == text.size() || !is_word_character(decode_at(text, end).value);
  return free_before && free_after;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& content = tokens_[i].content;
    if (!content.empty()) by_first_byte_[static_cast<unsigned char>(content.front())].push_back(i);
  }
  for (auto& list : by_first_byte_) {
    std::stable_sort(list.begin(), list.end(), [&](size_t a, size_t b) {
      return tokens_[a].content.size() > tokens_[b].content.size();
    });
  }
}

const AddedToken* AddedTokens::longest_at(std::string_view text, size_t at) const {
  for (const size_t i : by_first_byte_[static_cast<unsigned char>(text[at])]) {
    if (text.substr(at).starts_with(tokens_[i].content)) return &tokens_[i];
  }
  return nullptr;
}

std::vector<AddedTokens::Piece> AddedTokens::split(std::string_view text, bool find_special) const {
  std::vector<Piece> pieces;
  size_t taken = 0;  // up to here the text is in pieces
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = longest_at(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t start = at;
    size_t end = at + token->content.size();
    at = end;  // a match that is turned down is passed over whole
    if (token->special && !find_special) continue;
    if (token->single_word && !stands_alone(text, start, end)) continue;
    if (token->strip_left) {
      start = std::max(start, taken);
      while (start > taken) {
        const size_t before = previous_start(text, start);
        if (before < taken || !is_white_space(decode_at(text, before).value)) break;
        start = before;
      }
    }
    if (token->strip_right) {
      while (end < text.size()) {
        const CodePoint point = decode_at(text, end);
        if (!is_white_space(point.value)) break;
        end += static_cast<size_t>(point.length);
      }
    }
    if (start >= end) continue;
    if (start > taken) pieces.push_back({text.substr(taken, start - taken), std::nullopt});
    pieces.push_back({text.substr(start, end - start), token->id});
    // The search goes on behind the match, not behind the space it strips: a token of white space counts
    // again, as in Hugging Face's library.
    taken = end;
  }
  if (taken < text.size()) pieces.push_back({text.substr(taken), std::nullopt});
  return pieces;
}

}  // namespace sl
