#include "text/length_score.hpp"

#include "core/error.hpp"
#include "text/unicode.hpp"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

namespace sl {
namespace {

constexpr std::array<std::pair<LengthType, std::string_view>, 4> type_names = {
    {{LengthType::about, "about"},
     {LengthType::range, "range"},
     {LengthType::above, "above"},
     {LengthType::below, "below"}}};

// Whole numbers in the text; a comma between digits ("5,000") belongs to its number.
std::vector<double> numbers_in(std::string_view text) {
  std::vector<double> numbers;
  for (size_t at = 0; at < text.size();) {
    if (!is_ascii_digit(text[at])) {
      ++at;
      continue;
    }
    double value = 0;
    for (; at < text.size(); ++at) {
      if (is_ascii_digit(text[at])) {
        value = 10 * value + (text[at] - '0');
      } else if (text[at] != ',' || at + 1 == text.size() || !is_ascii_digit(text[at + 1])) {
        break;
      }
    }
    numbers.push_back(value);
  }
  return numbers;
}

}  // namespace

LengthType parse_length_type(std::string_view name) {
  for (const auto& [type, type_name] : type_names) {
    if (type_name == name) return type;
  }
  throw InputError("unknown length demand type '" + std::string(name) + "'", "column type",
                   "use about, range, above or below");
}

std::string_view length_type_name(LengthType type) {
  for (const auto& [known, name] : type_names) {
    if (known == type) return name;
  }
  throw BugError("no such length type");
}

LengthInterval parse_constraint(LengthType type, std::string_view constraint) {
  const auto numbers = numbers_in(constraint);
  const size_t wanted = type == LengthType::range ? 2 : 1;
  const bool fits = numbers.size() == wanted && numbers.front() > 0 && numbers.back() >= numbers.front();
  if (!fits) {
    throw InputError(
        "the length demand '" + std::string(constraint) + "' does not state " +
            (wanted == 2 ? "two rising numbers" : "one number") + " of words",
        "column constraint of type " + std::string(length_type_name(type)),
        "write it as LonGen does, e.g. '3000-4000 words' for range, 'around 3000 words' for about");
  }
  const double t = numbers.front();
  switch (type) {
    case LengthType::about:
      return {0.8 * t, 1.2 * t};
    case LengthType::range:
      return {t, numbers.back()};
    case LengthType::above:
      return {t, 1.5 * t};
    case LengthType::below:
      return {0.5 * t, t};
  }
  throw BugError("no such length type");
}

double length_score(const LengthInterval& interval, int64_t words) {
  const auto w = static_cast<double>(words);
  if (w < interval.low) return std::max(0.0, 2.0 * w / interval.low - 1.0);
  if (w > interval.high) return std::max(0.0, 3.0 - 2.0 * w / interval.high);
  return 1.0;
}

}  // namespace sl
