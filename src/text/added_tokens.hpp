// Tokens that are found in the text as they stand, before it is split into words: control tokens such as
// <|im_end|>.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sl {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special =
      false;  // a control token: left out of plain text, and not looked for where the caller says so
  bool normalized = false;   // looked for after normalization
  bool strip_left = false;   // takes the white space before it
  bool strip_right = false;  // takes the white space after it
  bool single_word = false;  // only where no letter, digit or underscore touches it
};

class AddedTokens {
 public:
  AddedTokens() = default;
  explicit AddedTokens(std::vector<AddedToken> tokens);

  // A stretch of text, or the token found there.
  struct Piece {
    std::string_view text;
    std::optional<int32_t> id;
  };

  // Cuts `text` at the tokens; at each place the longest wins. No piece is empty.
  std::vector<Piece> split(std::string_view text, bool find_special) const;
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  const AddedToken* longest_at(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  std::array<std::vector<size_t>, 256> by_first_byte_;  // places in tokens_, longest first
};

}  // namespace sl
