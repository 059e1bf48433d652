#include "text/length_demand.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <map>

#include "core/error.hpp"
#include "text/rules.hpp"

namespace sl {
namespace {

constexpr int64_t room_for_demand = 50;  // words

// Four digits of a Chinese number; `inside` when others are read before them.
std::string below_ten_thousand(int64_t number, bool inside) {
  static constexpr std::array<const char*, 10> digits = {"零", "一", "二", "三", "四",
                                                         "五", "六", "七", "八", "九"};
  struct Unit {
    int64_t value;
    const char* name;
  };
  static constexpr std::array<Unit, 4> units = {{{1000, "千"}, {100, "百"}, {10, "十"}, {1, ""}}};
  std::string text;
  bool gap = false, begun = inside;
  for (const Unit& unit : units) {
    const int64_t digit = number / unit.value % 10;
    if (digit == 0) {
      gap = begun;
      continue;
    }
    if (gap) text += digits[0];
    gap = false;
    const bool leading = !begun;
    if (unit.value == 10 && digit == 1 && leading) {
      text += unit.name;  // ten is 十, a hundred and ten 一百一十
    } else if (digit == 2 && (unit.value == 1000 || (unit.value == 100 && leading))) {
      text += fmt::format("两{}", unit.name);
    } else {
      text += digits[static_cast<size_t>(digit)];
      text += unit.name;
    }
    begun = true;
  }
  return text;
}

// Whether a number goes on over this edge of what was found in `text`: a digit, or a comma with digits
// beyond.
bool digits_before(std::string_view text, size_t at) {
  if (at > 0 && is_ascii_digit(text[at - 1])) return true;
  return at > 1 && text[at - 1] == ',' && is_ascii_digit(text[at - 2]);
}
bool digits_behind(std::string_view text, size_t end) {
  if (end < text.size() && is_ascii_digit(text[end])) return true;
  // "2000,3000" are two numbers: a comma inside of one has three digits behind it, and no fourth.
  const auto digit = [&](size_t at) { return at < text.size() && is_ascii_digit(text[at]); };
  return end < text.size() && text[end] == ',' && digit(end + 1) && digit(end + 2) && digit(end + 3) &&
         !digit(end + 4);
}

bool numeral_at_edge(std::string_view text, size_t begin, size_t end) {
  static constexpr std::array<std::string_view, 15> numerals = {
      "零", "一", "二", "两", "三", "四", "五", "六", "七", "八", "九", "十", "百", "千", "万"};
  return std::any_of(numerals.begin(), numerals.end(), [&](std::string_view numeral) {
    return text.substr(0, begin).ends_with(numeral) || text.substr(end).starts_with(numeral);
  });
}

bool names_number(std::string_view text, int64_t number, const LengthDemand& demand) {
  std::vector<std::string> forms = {std::to_string(number), written_number(number, Language::en)};
  if (demand.spelled) forms = {chinese_numeral(number)};
  for (const std::string& form : forms) {
    for (size_t at = text.find(form); at != std::string_view::npos; at = text.find(form, at + 1)) {
      const size_t end = at + form.size();
      const bool part_of_another = demand.spelled ? numeral_at_edge(text, at, end)
                                                  : digits_before(text, at) || digits_behind(text, end);
      if (!part_of_another) return true;
    }
  }
  return false;
}

// Words in lower case, without their punctuation, and Chinese characters, with how often each occurs.
std::map<std::string, int64_t> pieces_of(std::string_view text) {
  std::map<std::string, int64_t> pieces;
  std::string word;
  const auto end_word = [&] {
    if (!word.empty()) ++pieces[word];
    word.clear();
  };
  for (size_t at = 0; at < text.size();) {
    const CodePoint point = decode_at(text, at);
    const std::string_view character = text.substr(at, static_cast<size_t>(point.length));
    at += character.size();
    const auto ascii = static_cast<unsigned char>(character.front());
    if (is_cjk(point.value)) {
      end_word();
      ++pieces[std::string(character)];
    } else if (is_space(point.value) || (ascii < 0x80 && std::isalnum(ascii) == 0)) {
      end_word();
    } else if (ascii < 0x80) {
      word += static_cast<char>(std::tolower(ascii));
    } else {
      word += character;
    }
  }
  end_word();
  return pieces;
}

double share_kept(std::string_view before, std::string_view now) {
  const auto old_pieces = pieces_of(before), new_pieces = pieces_of(now);
  int64_t all = 0, kept = 0;
  for (const auto& [piece, count] : old_pieces) {
    const auto found = new_pieces.find(piece);
    all += count;
    kept += found == new_pieces.end() ? 0 : std::min(count, found->second);
  }
  return all == 0 ? 1.0 : static_cast<double>(kept) / static_cast<double>(all);
}

}  // namespace

std::string_view demand_name(DemandType type) {
  switch (type) {
    case DemandType::none:
      return "none";
    case DemandType::about:
      return "about";
    case DemandType::range:
      return "range";
    case DemandType::above:
      return "above";
    case DemandType::below:
      return "below";
  }
  throw BugError("unknown type of demand");
}

void LengthControl::validate() const {
  if (least >= most) {
    throw InputError(fmt::format("{} is not above --control-least {}", most, least), "--control-most",
                     "choose a larger number");
  }
  // Numerals are spelled up to this.
  if (most >= 100'000'000) throw InputError("is too large", "--control-most", "choose less than 100000000");
  const double sum = about + range + above + below;
  if (std::abs(sum - 1.0) > 1e-6) {
    throw InputError(fmt::format("the probabilities add up to {}", sum),
                     "--control-about, --control-range, --control-above, --control-below",
                     "let them add up to 1");
  }
}

RoundedLength round_length(int64_t words, int64_t unit, int64_t least, int64_t most) {
  const int64_t down = words / unit * unit, up = (words + unit - 1) / unit * unit;
  const int64_t near = (2 * words + unit) / (2 * unit) * unit;
  return {std::max(down, least), std::min(up, most), std::clamp(near, least, most)};
}

std::vector<int64_t> LengthDemand::numbers() const {
  switch (type) {
    case DemandType::none:
      return {};
    case DemandType::about:
    case DemandType::above:
      return {low};
    case DemandType::range:
      return {low, high};
    case DemandType::below:
      return {high};
  }
  throw BugError("unknown type of demand");
}

LengthDemand draw_demand(Random& random, const LengthControl& control, int64_t words, Language language) {
  const int64_t unit = random.uniform() < control.coarse ? control.coarse_unit : control.unit;
  const double type = random.uniform();
  const bool spelled = random.uniform() < control.numerals && language == Language::zh;
  const RoundedLength rounded = round_length(words, unit, control.least, control.most);
  double bound = control.about;
  if (type < bound) return {DemandType::about, rounded.near, rounded.near, spelled};
  bound += control.range;
  if (type < bound) {
    if (rounded.low == rounded.high) return {DemandType::about, rounded.near, rounded.near, spelled};
    return {DemandType::range, rounded.low, rounded.high, spelled};
  }
  bound += control.above;
  if (type < bound) return {DemandType::above, rounded.low, 0, spelled};
  return {DemandType::below, 0, rounded.high, spelled};
}

std::string written_number(int64_t number, Language language) {
  std::string text = std::to_string(number);
  if (language == Language::zh) return text;
  for (size_t at = text.size(); at > 3; at -= 3) text.insert(at - 3, ",");
  return text;
}

std::string chinese_numeral(int64_t number) {
  require(number > 0 && number < 100'000'000, "a Chinese numeral from 1 to 99,999,999");
  const int64_t high = number / 10'000, low = number % 10'000;
  if (high == 0) return below_ten_thousand(low, /*inside=*/false);
  const std::string front = high == 2 ? "两" : below_ten_thousand(high, /*inside=*/false);
  return front + "万" + below_ten_thousand(low, /*inside=*/true);
}

std::string demanded_number(int64_t number, const LengthDemand& demand, Language language) {
  return demand.spelled ? chinese_numeral(number) : written_number(number, language);
}

std::string_view weaving_fault_name(WeavingFault fault) {
  switch (fault) {
    case WeavingFault::none:
      return "none";
    case WeavingFault::empty:
      return "empty";
    case WeavingFault::number:
      return "number";
    case WeavingFault::lines:
      return "lines";
    case WeavingFault::length:
      return "length";
    case WeavingFault::rest:
      return "rest";
  }
  throw BugError("unknown fault");
}

WeavingFault check_woven(std::string_view instruction, std::string_view woven, const LengthDemand& demand,
                         double kept) {
  if (trim(woven).empty()) return WeavingFault::empty;
  for (const int64_t number : demand.numbers()) {
    if (!names_number(woven, number, demand)) return WeavingFault::number;
  }
  const auto lines = [](std::string_view text) { return std::count(text.begin(), text.end(), '\n'); };
  if (lines(woven) > lines(instruction)) return WeavingFault::lines;
  const int64_t before = count_words(instruction), now = count_words(woven);
  if (5 * now < 4 * before || now > before + room_for_demand) return WeavingFault::length;
  if (share_kept(instruction, woven) < kept) return WeavingFault::rest;
  return WeavingFault::none;
}

}  // namespace sl
