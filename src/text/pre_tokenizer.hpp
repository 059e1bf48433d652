// Splitting of text into words before byte-pair encoding: the steps of tokenizer.json's pre_tokenizer, each a
// regular expression applied to the pieces of the step before. Regular expressions are PCRE2's in Unicode
// mode.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sl {

// A compiled Unicode regular expression. const members may be called from several threads.
class Regex {
 public:
  // `\s` and `\S` mean Unicode's White_Space, as in Oniguruma, for which the patterns of tokenizer files are
  // written. InputError, naming `where`, when the pattern does not compile. A literal pattern matches itself.
  Regex(std::string_view pattern, bool literal, std::string_view where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // Calls visit(piece, matched) for the matches and the stretches between them, in order; no piece is empty.
  // `text` is valid UTF-8. InputError when the pattern takes too many steps.
  template <typename Visit>
  void for_each_piece(std::string_view text, Visit visit) const {
    size_t from = 0;
    for (const auto& [start, end] : matches(text)) {
      if (start > from) visit(text.substr(from, start - from), false);
      visit(text.substr(start, end - start), true);
      from = end;
    }
    if (from < text.size()) visit(text.substr(from), false);
  }

 private:
  struct Compiled;
  std::vector<std::pair<size_t, size_t>> matches(
      std::string_view text) const;  // not empty ones, [start, end)

  std::unique_ptr<Compiled> compiled_;
};

// What becomes of the matches of a split: pieces of their own, or nothing.
enum class SplitBehaviour { isolated, removed };

class PreTokenizer {
 public:
  // `invert` swaps the roles of matches and the stretches between them.
  void add_split(Regex regex, SplitBehaviour behaviour = SplitBehaviour::isolated, bool invert = false);
  // Puts a space before each piece that does not begin with one.
  void add_prefix_space();

  // The words of `text` (valid UTF-8), which are views of it or of strings put into `owned`.
  std::vector<std::string_view> split(std::string_view text, std::deque<std::string>& owned) const;

 private:
  struct Step {
    std::unique_ptr<Regex> regex;  // none: the step adds the prefix space
    SplitBehaviour behaviour = SplitBehaviour::isolated;
    bool invert = false;
  };
  std::vector<Step> steps_;
};

// The pattern that ByteLevel applies itself ("use_regex"), GPT-2's.
extern const std::string_view gpt2_pattern;

// The pre-tokenizer that GGUF files name in tokenizer.ggml.pre. InputError, naming `where`, for one we do not
// know.
PreTokenizer pre_tokenizer_of_gguf(std::string_view name, std::string_view where);
// Its patterns, each applied to the pieces of the one before; matches are pieces of their own.
std::vector<std::string> patterns_of_gguf(std::string_view name, std::string_view where);

}  // namespace sl
