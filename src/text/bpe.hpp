// Byte-pair encoding of one word: adjacent tokens merge, the pair that was learnt first going first.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace sl {

class Bpe {
 public:
  // A merge of the tokens `left` and `right` into `merged`. Its place in the list is its rank.
  struct Merge {
    int32_t left = 0;
    int32_t right = 0;
    int32_t merged = 0;
  };

  // tokens: bytes of each id (empty: no such token). whole_words_first: a word that is a token is not split
  // ("ignore_merges"). unknown: stands for a byte that is no token; without it such bytes vanish, as in
  // Hugging Face's library.
  Bpe(const std::vector<std::string>& tokens, const std::vector<Merge>& merges, bool whole_words_first,
      std::optional<int32_t> unknown);

  // Appends the tokens of `word`. O(n log n) in its bytes.
  void encode(std::string_view word, std::vector<int32_t>& out) const;

 private:
  struct Result {
    int32_t rank = 0;
    int32_t merged = 0;
  };
  const Result* find(int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_tokens_{};          // -1: no such token
  std::unordered_map<uint64_t, Result> merges_;     // key: left << 32 | right
  std::unordered_map<std::string, int32_t> words_;  // only with whole_words_first
  std::optional<int32_t> unknown_;
};

}  // namespace sl
