// Length control of METHOD.md: which demand on its length suits a finished text, the words for it, and
// whether a rewritten instruction states it. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/rng.hpp"
#include "text/repetition.hpp"

namespace sl {

enum class DemandType : uint8_t { none, about, range, above, below };
std::string_view demand_name(DemandType type);  // as in LonGen's rows

struct LengthControl {
  int64_t least = 2000;  // texts of at least so many words get a demand
  int64_t most = 8000;   // and of fewer than so many; no demand names a number outside of both
  int64_t unit = 1000, coarse_unit = 2000;                        // numbers are multiples of one of them
  double coarse = 0.2;                                            // probability of the second
  double about = 0.40, range = 0.25, above = 0.10, below = 0.25;  // of the types; their sum is 1
  double numerals = 0.5;  // probability that a Chinese demand spells its numbers

  // InputError when the numbers do not go together.
  void validate() const;
  bool covers(int64_t words) const { return words >= least && words < most; }
};

// A text's words, rounded to multiples of a unit: down, but to `least` at the least; up, but to `most` at the
// most; and to the nearest (half a unit upwards), within both.
struct RoundedLength {
  int64_t low = 0, high = 0, near = 0;
};
RoundedLength round_length(int64_t words, int64_t unit, int64_t least, int64_t most);

struct LengthDemand {
  DemandType type = DemandType::none;
  int64_t low = 0, high = 0;  // the numbers named: both are the same of `about`; 0: none
  bool spelled = false;       // in Chinese numerals
  bool operator==(const LengthDemand&) const = default;
  std::vector<int64_t> numbers() const;  // in the order in which they are named
};

// Draws the unit, the type and the spelling, in this order. A range of a text that is an exact multiple of
// the unit would go from a number to itself: it becomes `about`.
LengthDemand draw_demand(Random& random, const LengthControl& control, int64_t words, Language language);

// 3000 -> "3,000" (en), "3000" (zh).
std::string written_number(int64_t number, Language language);
// 1 to 99,999,999 as it is read: 2000 is 两千, 4500 四千五百, 10050 一万零五十.
std::string chinese_numeral(int64_t number);
std::string demanded_number(int64_t number, const LengthDemand& demand, Language language);

// Why a rewritten instruction is not taken; the first of them in this order.
enum class WeavingFault : uint8_t { none, empty, number, lines, length, rest };
std::string_view weaving_fault_name(WeavingFault fault);

// `woven` is one text that may stand for `instruction` with the demand in it: it names the demand's numbers
// as they are written in it (digits with or without commas), has no more lines than before (a remark of the
// model stands on its own line), and from four fifths of the words to 50 more, among
// them at least the share `kept` of those before (words without their punctuation, Chinese characters).
WeavingFault check_woven(std::string_view instruction, std::string_view woven, const LengthDemand& demand,
                         double kept);

}  // namespace sl
