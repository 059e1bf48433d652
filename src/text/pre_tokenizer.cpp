#include "text/pre_tokenizer.hpp"

#include "core/error.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

namespace sl {
namespace {

std::string pcre2_message(int code) {
  std::array<unsigned char, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

// The pattern as PCRE2 writes what Oniguruma, which Hugging Face's library splits with, means by it:
// White_Space, without U+180E; \w and \h (a hexadecimal digit) by properties; ^ and $ at every line.
// InputError on what would mean something else and has no such form.
std::string as_pcre2(std::string_view pattern, std::string_view where) {
  const auto refuse = [&](std::string_view part) {
    throw InputError(
        "the pattern '" + std::string(pattern) + "' has " + std::string(part) + ", which is not supported",
        where, "use a tokenizer of a supported family");
  };
  constexpr std::string_view word = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})", hexadecimal = "0-9A-Fa-f";
  std::string result;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const std::string_view rest = pattern.substr(i);
    if (c == '\\' && rest.size() > 1) {
      const char escaped = pattern[++i];
      const auto set = [&](std::string_view members, bool complement) {
        if (in_class && complement) refuse("a complement inside a class");
        result.append(in_class ? "" : complement ? "[^" : "[").append(members).append(in_class ? "" : "]");
      };
      switch (escaped) {
        case 's':
          result += "\\p{White_Space}";
          break;
        case 'S':
          result += "\\P{White_Space}";
          break;
        case 'w':
        case 'W':
          set(word, escaped == 'W');
          break;
        case 'h':
        case 'H':
          set(hexadecimal, escaped == 'H');
          break;
        case 'u':
          if (rest.size() < 6) refuse("an incomplete \\u");
          result.append("\\x{").append(rest.substr(2, 4)).append("}");
          i += 4;
          break;
        case 'b':
        case 'B':
          if (!in_class) refuse("a border of words");
          [[fallthrough]];
        default:
          result += {'\\', escaped};
      }
    } else if (!in_class && c == '[') {
      in_class = true;
      result += c;
      if (rest.size() > 1 && rest[1] == '^') result += pattern[++i];
    } else if (in_class && (c == '[' || rest.starts_with("&&"))) {
      refuse("a class inside a class");
    } else if (!in_class && (c == '^' || c == '$')) {
      result += c == '^' ? R"((?<![^\n]))" : R"((?![^\n]))";
    } else {
      in_class = in_class && c != ']';
      result += c;
    }
  }
  return result;
}

struct MatchDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

}  // namespace

struct Regex::Compiled {
  pcre2_code* code = nullptr;
  std::string pattern, where;  // for messages
  Compiled(pcre2_code* compiled, std::string_view from, std::string_view file)
      : code(compiled), pattern(from), where(file) {}
  ~Compiled() { pcre2_code_free(code); }
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;
};

Regex::Regex(std::string_view pattern, bool literal, std::string_view where) {
  const std::string source = literal ? std::string(pattern) : as_pcre2(pattern, where);
  // \C would end a match inside a character, where the next must not begin.
  const uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
  int error = 0;
  size_t offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(), options,
                                   &error, &offset, nullptr);
  if (code == nullptr) {
    throw InputError("the pattern '" + std::string(pattern) + "' does not compile: " + pcre2_message(error),
                     where, "use a tokenizer of a supported family");
  }
  compiled_ = std::make_unique<Compiled>(code, pattern, where);
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // refused without JIT support; matching then interprets
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

std::vector<std::pair<size_t, size_t>> Regex::matches(std::string_view text) const {
  std::vector<std::pair<size_t, size_t>> found;
  const std::unique_ptr<pcre2_match_data, MatchDeleter> data(
      pcre2_match_data_create_from_pattern(compiled_->code, nullptr));
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  // No empty match: a pattern that allows one would otherwise stand still.
  const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
  for (size_t at = 0; at < text.size();) {
    const auto match = [&](uint32_t how) {
      return pcre2_match(compiled_->code, subject, text.size(), at, how, data.get(), nullptr);
    };
    int rc = match(options);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = match(options | PCRE2_NO_JIT);  // slower, but on the heap
    if (rc == PCRE2_ERROR_NOMATCH) break;
    // A pattern may need more steps than PCRE2 takes, or say by \K that its match begins elsewhere.
    const size_t* bounds = pcre2_get_ovector_pointer(data.get());
    if (rc < 0 || bounds[0] < at || bounds[1] <= bounds[0]) {
      throw InputError("the pattern '" + compiled_->pattern + "' cannot split a text of " +
                           std::to_string(text.size()) +
                           " bytes: " + (rc < 0 ? pcre2_message(rc) : "a match before its beginning"),
                       compiled_->where, "use a tokenizer of a supported family");
    }
    found.emplace_back(bounds[0], bounds[1]);
    at = bounds[1];
  }
  return found;
}

void PreTokenizer::add_split(Regex regex, SplitBehaviour behaviour, bool invert) {
  steps_.push_back({std::make_unique<Regex>(std::move(regex)), behaviour, invert});
}

void PreTokenizer::add_prefix_space() { steps_.push_back({}); }

std::vector<std::string_view> PreTokenizer::split(std::string_view text,
                                                  std::deque<std::string>& owned) const {
  std::vector<std::string_view> pieces = {text};
  std::vector<std::string_view> next;
  for (const Step& step : steps_) {
    next.clear();
    for (const std::string_view piece : pieces) {
      if (step.regex) {
        step.regex->for_each_piece(piece, [&](std::string_view part, bool matched) {
          const bool delimiter = matched != step.invert;
          if (!delimiter || step.behaviour == SplitBehaviour::isolated) next.push_back(part);
        });
      } else if (piece.front() == ' ') {
        next.push_back(piece);
      } else {
        next.push_back(owned.emplace_back(" ").append(piece));
      }
    }
    pieces.swap(next);
  }
  return pieces;
}

const std::string_view gpt2_pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::vector<std::string> patterns_of_gguf(std::string_view name, std::string_view where) {
  // Qwen2's and Llama 3's differ in how many digits make a word.
  static constexpr std::string_view head = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)";
  static constexpr std::string_view tail = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  if (name == "qwen2") return {std::string(head) + R"(\p{N})" + std::string(tail)};
  if (name == "llama-bpe" || name == "llama3" || name == "llama-v3")
    return {std::string(head) + R"(\p{N}{1,3})" + std::string(tail)};
  if (name == "smollm") return {R"(\p{N})", std::string(gpt2_pattern)};
  if (name == "gpt-2") return {std::string(gpt2_pattern)};
  throw InputError("unknown pre-tokenizer '" + std::string(name) + "' (tokenizer.ggml.pre)", where,
                   "known are qwen2, llama-bpe, smollm and gpt-2");
}

PreTokenizer pre_tokenizer_of_gguf(std::string_view name, std::string_view where) {
  PreTokenizer pre;
  for (const std::string& pattern : patterns_of_gguf(name, where))
    pre.add_split(Regex(pattern, false, where));
  return pre;
}

}  // namespace sl
