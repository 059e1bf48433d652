// LonGen's length score over a file of responses (METHOD.md).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/json_lines.hpp"
#include "text/length_score.hpp"

namespace sl {

struct LonGenScore {
  std::string language, range;  // as the row says; empty where it does not
  LengthType type = LengthType::about;
  int64_t words = 0;
  double score = 0.0;  // 0 to 1
};

// The score of a row's response by its `type` and `constraint`. InputError with path and line on a row
// without one of them, of an unknown type, or whose constraint does not hold the numbers of its type.
LonGenScore score_longen(const JsonRow& row, const std::string& response, const std::string& path);

// {about, range, above, below, overall: mean score or null, counts: {the same}, mean_words, languages: {en:
// {...}, ...}, ranges: {"2-4k": {...}, ...}}, the inner ones of the same form.
nlohmann::json longen_report(const std::vector<LonGenScore>& scores);

// The same for people: a line for each language and range, and for all of them. `quality`: of each row what a
// judge gave it, for two more columns; empty: there is no judge.
std::string longen_table(const std::vector<LonGenScore>& scores,
                         const std::vector<std::optional<double>>& quality);

}  // namespace sl
