// LonGen's length score (METHOD.md): how well the length of a response meets the demand of its row.
#pragma once

#include <cstdint>
#include <string_view>

namespace sl {

// LonGen's column `type`.
enum class LengthType { about, range, above, below };

LengthType parse_length_type(std::string_view name);  // InputError for an unknown name
std::string_view length_type_name(LengthType type);

// Words wanted, both ends included; 0 < low <= high.
struct LengthInterval {
  double low = 0;
  double high = 0;
};

// The interval that a row's `constraint` text demands: "around 3000 words", "3000-4000 words", "大于5000字"
// and so on. Only its whole numbers are read (two for range, else one). InputError names the text when they
// do not fit the type.
LengthInterval parse_constraint(LengthType type, std::string_view constraint);

// 1 inside the interval; below it max(0, 2 words / low - 1), above it max(0, 3 - 2 words / high).
double length_score(const LengthInterval& interval, int64_t words);

}  // namespace sl
