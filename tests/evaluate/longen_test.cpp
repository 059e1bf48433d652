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

TEST(LonGen, ScoresEveryTypeByItsInterval) {
  const std::vector<LonGenScore> scores = score_longen(
      {row(1, "about", "around 100 words", 80), row(2, "range", "100-200 words", 75),
       row(3, "above", "more than 100 words", 150), row(4, "below", "less than 100 words", 125, "zh")},
      "rows.jsonl");
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

TEST(LonGen, NamesTheBadRow) {
  const auto message = [](const JsonRow& bad) -> std::string {
    try {
      score_longen({bad}, "rows.jsonl");
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  JsonRow without = row(7, "about", "around 100 words", 1);
  without.value.erase("response");
  EXPECT_NE(message(without).find("rows.jsonl:7"), std::string::npos);
  EXPECT_NE(message(without).find("response"), std::string::npos);
  EXPECT_NE(message(row(8, "nearly", "100", 1)).find("rows.jsonl:8"), std::string::npos);
  EXPECT_NE(message(row(9, "about", "some words", 1)).find("rows.jsonl:9"), std::string::npos);
}

}  // namespace
}  // namespace sl
