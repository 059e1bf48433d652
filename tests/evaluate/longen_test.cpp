#include "evaluate/longen.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"

namespace sl {
namespace {

using nlohmann::json;

std::string words(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += "word ";
  return text;
}

JsonRow row(int64_t line, const std::string& type, const std::string& constraint, int count,
            const std::string& language = "en") {
  return {line, json{{"type", type},
                     {"constraint", constraint},
                     {"language", language},
                     {"range", "2-4k"},
                     {"response", words(count)}}};
}

std::vector<LonGenScore> scores_of(const std::vector<JsonRow>& rows) {
  std::vector<LonGenScore> scores;
  for (const JsonRow& one : rows) scores.push_back(score_longen(one, one.value["response"], "rows.jsonl"));
  return scores;
}

std::vector<LonGenScore> four_scores() {
  return scores_of({row(1, "about", "around 100 words", 80), row(2, "range", "100-200 words", 75),
                    row(3, "above", "more than 100 words", 150),
                    row(4, "below", "less than 100 words", 125, "zh")});
}

TEST(LonGen, ScoresEveryTypeByItsInterval) {
  const std::vector<LonGenScore> scores = four_scores();
  ASSERT_EQ(scores.size(), 4U);
  EXPECT_DOUBLE_EQ(scores[0].score, 1.0);
  EXPECT_DOUBLE_EQ(scores[1].score, 0.5);  // 2 * 75 / 100 - 1
  EXPECT_DOUBLE_EQ(scores[2].score, 1.0);
  EXPECT_DOUBLE_EQ(scores[3].score, 0.5);  // 3 - 2 * 125 / 100

  const json report = longen_report(scores);
  EXPECT_DOUBLE_EQ(report["overall"].get<double>(), 0.75);
  EXPECT_DOUBLE_EQ(report["below"].get<double>(), 0.5);
  EXPECT_DOUBLE_EQ(report["mean_words"].get<double>(), 107.5);
  EXPECT_EQ(report["counts"]["overall"], 4);
  EXPECT_EQ(report["languages"]["en"]["counts"]["overall"], 3);
  EXPECT_DOUBLE_EQ(report["languages"]["zh"]["overall"].get<double>(), 0.5);
  EXPECT_TRUE(report["languages"]["zh"]["about"].is_null());
  EXPECT_EQ(report["ranges"]["2-4k"]["counts"]["range"], 1);
}

TEST(LonGen, TableHasALineForEachGroupAndForAll) {
  const std::vector<LonGenScore> scores = four_scores();
  EXPECT_EQ(longen_table(scores, {}),
            "language  range    rows     words   about   range   above   below  overall\n"
            "en        2-4k        3     101.7   1.000   0.500   1.000       -    0.833\n"
            "en        all         3     101.7   1.000   0.500   1.000       -    0.833\n"
            "zh        2-4k        1     125.0       -       -       -   0.500    0.500\n"
            "zh        all         1     125.0       -       -       -   0.500    0.500\n"
            "all       2-4k        4     107.5   1.000   0.500   1.000   0.500    0.750\n"
            "all       all         4     107.5   1.000   0.500   1.000   0.500    0.750\n");
  const std::string judged = longen_table(scores, {8.0, std::nullopt, 5.0, std::nullopt});
  EXPECT_NE(judged.find("   0.833     6.50       2\n"), std::string::npos) << judged;
  EXPECT_NE(judged.find("   0.500        -       0\n"), std::string::npos) << judged;
}

TEST(LonGen, NamesTheBadRow) {
  const auto message = [](const JsonRow& bad) -> std::string {
    try {
      score_longen(bad, "", "rows.jsonl");
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  JsonRow without = row(7, "about", "around 100 words", 1);
  without.value.erase("constraint");
  EXPECT_NE(message(without).find("rows.jsonl:7"), std::string::npos);
  EXPECT_NE(message(without).find("constraint"), std::string::npos);
  EXPECT_NE(message(row(8, "nearly", "100", 1)).find("rows.jsonl:8"), std::string::npos);
  EXPECT_NE(message(row(9, "about", "some words", 1)).find("rows.jsonl:9"), std::string::npos);
}

}  // namespace
}  // namespace sl
