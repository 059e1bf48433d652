// The deterministic rules of METHOD.md on texts: words, acceptance, halves, length-bias sampling, line
// removal. Pure functions. Lines and paragraphs are split at the byte '\n' alone; white space is Unicode's
// (text/unicode.hpp).
#pragma once

#include "text/repetition.hpp"
#include "text/unicode.hpp"

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sl {

// "en" or "zh", as in LonGen's rows and on the command line. InputError for anything else.
Language parse_language(std::string_view name);
std::string_view language_name(Language language);

// The language a text is in: Chinese when more than half of its words (count_words) are CJK characters.
Language detect_language(std::string_view text);

// Each CJK character (is_cjk) counts one; the rest counts its white-space-separated pieces.
int64_t count_words(std::string_view text);

// Which rule turned a response down; the first of them in this order.
enum class Rejection { none, ending, banned_word, repetition };
std::string_view rejection_name(Rejection rejection);

// METHOD.md's acceptance. An empty text (or only white space) is rejected for its ending.
Rejection accept(Language language, std::string_view text);

// The first floor(n/2) of the n paragraphs (of the n lines, where there are at most 2 paragraphs), joined by
// blank lines.
std::string first_half(std::string_view text);

// The first floor(2n/3) of the n paragraphs, joined by blank lines.
std::string first_two_thirds(std::string_view text);

// Keep probability of each of n responses, from their lengths in code points: max(0, 1 - 2 rank^3) with rank
// 1 - (number of strictly shorter responses) / n.
std::vector<double> length_bias_keep_probabilities(std::span<const int64_t> characters);

// Keeps the lines for which `keep(line number from 0)` is true; joined by '\n' (en) or a blank line (zh).
std::string random_line_removal(std::string_view text, Language language,
                                const std::function<bool(int64_t)>& keep);

// Pieces of `text` between occurrences of `separator` (not empty); one piece, maybe empty, when there is
// none.
std::vector<std::string_view> split(std::string_view text, std::string_view separator);
std::string join(std::span<const std::string_view> pieces, std::string_view separator);

}  // namespace sl
