#include "text/rules.hpp"

#include "core/error.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace sl {
namespace {

// Calls visit(word) for each white-space-separated piece until it returns true; then returns true.
template <typename Visit>
bool any_word(std::string_view text, Visit visit) {
  size_t start = 0;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_at(text, at);
    const size_t next = at + static_cast<size_t>(point.length);
    if (is_space(point.value)) {
      if (at > start && visit(text.substr(start, at - start))) return true;
      start = next;
    }
    at = next;
  }
  return start < text.size() && visit(text.substr(start));
}

// The same for Chinese tokens: a run of ASCII characters, or any other single character.
template <typename Visit>
bool any_chinese_token(std::string_view text, Visit visit) {
  for (size_t at = 0; at < text.size();) {
    size_t next = at + static_cast<size_t>(decode_at(text, at).length);
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      while (next < text.size() && static_cast<unsigned char>(text[next]) < 0x80) ++next;
    }
    if (visit(text.substr(at, next - at))) return true;
    at = next;
  }
  return false;
}

bool has_repetition(Language language, std::string_view text) {
  RunIndex index(repetition_run(language));
  const auto add = [&](std::string_view word) { return index.add(word); };
  return language == Language::en ? any_word(text, add) : any_chinese_token(text, add);
}

bool ends_well(Language language, std::string_view trimmed) {
  static constexpr std::u32string_view english = U".!?,;:-\"')]}>`";
  static constexpr std::u32string_view chinese = U"。！？”)]}>）】’…`";
  if (trimmed.empty()) return false;
  size_t last = trimmed.size() - 1;
  while (last > 0 && (static_cast<unsigned char>(trimmed[last]) & 0xC0U) == 0x80U) --last;
  const auto& endings = language == Language::en ? english : chinese;
  return endings.find(decode_at(trimmed, last).value) != std::u32string_view::npos;
}

// The words by which a model talks about its own rewriting, in the first 2 or last 3 lines.
bool has_banned_word(std::string_view trimmed) {
  static constexpr std::array<std::string_view, 5> banned = {"revised", "revision", "response", "version",
                                                             "paragraph"};
  const auto lines = split(trimmed, "\n");
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i >= 2 && i + 3 < lines.size()) continue;
    for (const auto word : banned) {
      if (lines[i].find(word) != std::string_view::npos) return true;
    }
  }
  return false;
}

std::string first_pieces(const std::vector<std::string_view>& pieces, size_t count) {
  return join(std::span(pieces).first(count), "\n\n");
}

}  // namespace

Language parse_language(std::string_view name) {
  if (name == "en") return Language::en;
  if (name == "zh") return Language::zh;
  throw InputError("unknown language '" + std::string(name) + "'", "language", "use en or zh");
}

std::string_view language_name(Language language) { return language == Language::en ? "en" : "zh"; }

Language detect_language(std::string_view text) {
  int64_t cjk = 0;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_at(text, at);
    cjk += is_cjk(point.value) ? 1 : 0;
    at += static_cast<size_t>(point.length);
  }
  return 2 * cjk > count_words(text) ? Language::zh : Language::en;
}

int64_t count_words(std::string_view text) {
  int64_t count = 0;
  bool in_word = false;
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_at(text, at);
    at += static_cast<size_t>(point.length);
    const bool cjk = is_cjk(point.value);
    const bool word_character = !cjk && !is_space(point.value);
    if (cjk || (word_character && !in_word)) ++count;
    in_word = word_character;
  }
  return count;
}

std::string_view rejection_name(Rejection rejection) {
  switch (rejection) {
    case Rejection::none:
      return "none";
    case Rejection::ending:
      return "ending";
    case Rejection::banned_word:
      return "banned_word";
    case Rejection::repetition:
      return "repetition";
  }
  throw BugError("no such rejection");
}

Rejection accept(Language language, std::string_view text) {
  const std::string_view trimmed = trim_end(text);
  if (!ends_well(language, trimmed)) return Rejection::ending;
  if (language == Language::en && has_banned_word(trimmed)) return Rejection::banned_word;
  if (has_repetition(language, trimmed)) return Rejection::repetition;
  return Rejection::none;
}

std::string first_half(std::string_view text) {
  auto pieces = split(text, "\n\n");
  if (pieces.size() <= 2) pieces = split(text, "\n");
  return first_pieces(pieces, pieces.size() / 2);
}

std::string first_two_thirds(std::string_view text) {
  const auto pieces = split(text, "\n\n");
  return first_pieces(pieces, 2 * pieces.size() / 3);
}

std::vector<double> length_bias_keep_probabilities(std::span<const int64_t> characters) {
  std::vector<int64_t> sorted(characters.begin(), characters.end());
  std::sort(sorted.begin(), sorted.end());
  const auto n = static_cast<double>(sorted.size());
  std::vector<double> probabilities;
  probabilities.reserve(sorted.size());
  for (const int64_t length : characters) {
    const auto shorter = std::lower_bound(sorted.begin(), sorted.end(), length) - sorted.begin();
    const double rank = 1.0 - static_cast<double>(shorter) / n;
    probabilities.push_back(std::max(0.0, 1.0 - 2.0 * rank * rank * rank));
  }
  return probabilities;
}

std::string random_line_removal(std::string_view text, Language language,
                                const std::function<bool(int64_t)>& keep) {
  std::vector<std::string_view> kept;
  int64_t number = 0;
  for (const auto line : split(text, "\n")) {
    if (keep(number++)) kept.push_back(line);
  }
  return join(kept, language == Language::en ? "\n" : "\n\n");
}

std::vector<std::string_view> split(std::string_view text, std::string_view separator) {
  require(!separator.empty(), "split needs a separator");
  std::vector<std::string_view> pieces;
  size_t start = 0;
  for (size_t at = text.find(separator); at != std::string_view::npos; at = text.find(separator, start)) {
    pieces.push_back(text.substr(start, at - start));
    start = at + separator.size();
  }
  pieces.push_back(text.substr(start));
  return pieces;
}

std::string join(std::span<const std::string_view> pieces, std::string_view separator) {
  std::string joined;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (i > 0) joined += separator;
    joined += pieces[i];
  }
  return joined;
}

}  // namespace sl
