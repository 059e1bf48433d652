// The rule of acceptance that more text cannot mend: a run of words that occurs twice (METHOD.md). RunIndex
// is the rule over a list of words; RepetitionWatch applies it to text that is still growing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sl {

enum class Language { en, zh };

// Finds the first run of `length` consecutive words that has occurred before (occurrences may overlap).
// add() is O(1) amortised: runs are found by a rolling hash and then compared word by word, so no answer is a
// guess.
class RunIndex {
 public:
  explicit RunIndex(int64_t length);

  // Appends a word; true when the run that ends with it, or an earlier one, has occurred twice.
  bool add(std::string_view word);
  bool repeated() const { return repeated_; }

 private:
  bool same_run(int64_t first, int64_t second) const;

  int64_t length_;
  uint64_t drop_factor_;  // base^(length - 1), to take the oldest word out of the hash
  uint64_t hash_ = 0;     // of the last `length_` words
  bool repeated_ = false;
  std::unordered_map<std::string, int32_t> ids_;  // word -> small number, so that words compare as integers
  std::vector<int32_t> words_;
  std::unordered_multimap<uint64_t, int64_t> starts_;  // hash of a run -> where one began
};

// Words a run has in this language: 10 in English, 13 tokens in Chinese.
int64_t repetition_run(Language language);

// Watches a response while it is generated. Never reports a text that accept() would not reject for
// repetition, whatever is appended later and whether or not white space at the text's ends is trimmed.
class RepetitionWatch {
 public:
  explicit RepetitionWatch(Language language);

  // Appends whole characters that no later event will take back (text a stop string may still swallow is not
  // given). True as soon as a run has occurred twice among the words that can no longer change.
  bool append(std::string_view text);
  bool repeated() const { return index_.repeated(); }

 private:
  void append_english(char32_t value, std::string_view bytes);
  void append_chinese(char32_t value, std::string_view bytes);

  Language language_;
  RunIndex index_;
  std::string word_;            // the last word (zh: run of ASCII characters); it may still grow
  std::string trailing_;        // zh: white space at the end, which trimming may still take away
  bool started_ = false;        // zh: any character seen
  bool in_first_token_ = true;  // zh: still in leading white space or the ASCII run that touches it
};

}  // namespace sl
