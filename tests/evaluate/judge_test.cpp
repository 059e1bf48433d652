#include "evaluate/judge.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.hpp"

namespace sl {
namespace {

using nlohmann::json;

json good() {
  json object;
  for (size_t i = 0; i < judge_dimensions.size(); ++i)
    object[judge_dimensions[i]] = 10 - static_cast<int>(i);  // 10 to 4
  return object;
}

std::string with(const std::string& dimension, const std::string& value) {
  json object = good();
  object[dimension] = "HERE";
  std::string text = object.dump();
  return text.replace(text.find("\"HERE\""), 6, value);
}

JudgeFault fault_of(const std::string& answer) { return parse_judgement(answer).fault; }

TEST(Judgement, IsReadWhateverIsAroundIt) {
  for (const std::string& answer :
       {good().dump(), good().dump(2), "```json\n" + good().dump(2) + "\n```",
        "My judgement: " + good().dump(), good().dump() + "\n\nIt is a fine text.",
        "  \n" + good().dump() + "\t", "评价如下：" + good().dump()}) {
    const Judgement judgement = parse_judgement(answer);
    ASSERT_EQ(judgement.fault, JudgeFault::none) << answer;
    for (size_t i = 0; i < judge_dimensions.size(); ++i)
      EXPECT_EQ(judgement.scores[i], 10 - static_cast<int>(i)) << answer;
  }
}

TEST(Judgement, NothingElseIsOne) {
  const std::string text = good().dump();
  for (const std::string& answer : std::vector<std::string>{
           std::string(), std::string("It deserves an 8."), std::string("[8, 8, 8, 8, 8, 8, 8]"),
           std::string("} {"), std::string("}"), std::string("{"), text.substr(0, text.size() - 1),
           text.substr(0, text.size() / 2), "relevance: 8"}) {
    EXPECT_EQ(fault_of(answer), JudgeFault::no_object) << answer;
  }
  for (const std::string& answer : std::vector<std::string>{
           text + text,
           text + " or " + text,
           "{" + text + "}",
           "{a}",
           "in {braces} " + text,
           text.substr(0, text.size() - 1) + ",}",
           with("clarity", "NaN"),
           with("clarity", "nan"),
           with("clarity", "Infinity"),
           with("clarity", "1e999"),
           with("clarity", "08"),
           with("clarity", "+8"),
           with("clarity", "N"),
           with("clarity", ""),
           with("clarity", "8/10"),
           with("clarity", "8 // good"),
           with("clarity", "\"\xff\""),
           text.substr(0, 20) + "}",
           text.substr(0, text.size() - 1) + ",\"clarity\":6}",        // the same twice
           text.substr(0, text.size() - 1) + ",\"clarity\":1}",        // two that differ
           text.substr(0, text.size() - 1) + ",\"clar\\u0069ty\":6}",  // spelled another way
           with("clarity", "{\"a\":1,\"a\":1}"),
           std::string(100000, '{') + "}"}) {
    EXPECT_EQ(fault_of(answer), JudgeFault::not_json) << answer.substr(0, 200);
  }
  json more = good(), fewer = good(), other = good(), cased = good();
  more["overall"] = 8;
  fewer.erase("clarity");
  other.erase("clarity");
  other["style"] = 7;
  cased.erase("clarity");
  cased["Clarity"] = 7;
  for (const json& object : {more, fewer, other, cased, json::object(), json{{"scores", good()}}})
    EXPECT_EQ(fault_of(object.dump()), JudgeFault::wrong_keys) << object;
  for (const std::string value :
       {"0", "11", "-1", "-0", "8.0", "8.5", "1e0", "\"8\"", "\"\"", "true", "null", "[8]", "{\"score\":8}",
        "100", "4294967304", "18446744073709551615", "-9223372036854775808", "99999999999999999999"}) {
    for (const char* dimension : judge_dimensions)
      EXPECT_EQ(fault_of(with(dimension, value)), JudgeFault::wrong_value) << value;
  }
  for (const int value : {1, 10})
    EXPECT_EQ(fault_of(with("clarity", std::to_string(value))), JudgeFault::none);
}

TEST(Judgement, RecordsCountWhatWasRefused) {
  const json third = judge_record({"no", "{}", good().dump()});
  EXPECT_EQ(third,
            (json{{"scores", good()}, {"attempts", 3}, {"faults", {{"no_object", 1}, {"wrong_keys", 1}}}}));
  EXPECT_DOUBLE_EQ(*quality_of(third), 7.0);
  const json never = judge_record({"no", "not at all"});
  EXPECT_EQ(never, (json{{"scores", nullptr},
                         {"why", "refused"},
                         {"attempts", 2},
                         {"faults", {{"no_object", 2}}},
                         {"answer", "not at all"}}));
  EXPECT_FALSE(quality_of(never));
}

TEST(Judgement, ReportLeavesNoRowOut) {
  json low = good();
  for (const char* dimension : judge_dimensions) low[dimension] = 1;
  const json high = judge_record({good().dump()}), poor = judge_record({"?", low.dump()});
  const json refused = judge_record({"?", "?"}), too_long = not_judged("too_long");
  const json report = judge_report({{"en", "2-4k", "about", &high},
                                    {"zh", "2-4k", "below", &poor},
                                    {"zh", "4-6k", "below", &refused},
                                    {"zh", "4-6k", "about", &too_long}});
  EXPECT_EQ(report["rows"], 4);
  EXPECT_EQ(report["judged"], 2);
  EXPECT_EQ(report["not_judged"], (json{{"refused", 1}, {"too_long", 1}, {"missing", 0}}));
  EXPECT_EQ(report["attempts"], 5);
  EXPECT_EQ(report["faults"], (json{{"no_object", 3}}));
  EXPECT_DOUBLE_EQ(report["overall"].get<double>(), 4.0);  // of 7 and 1
  EXPECT_EQ(report["dimensions"]["relevance"], (json{{"mean", 5.5}, {"judged", 2}, {"not_judged", 2}}));
  EXPECT_EQ(report["dimensions"].size(), judge_dimensions.size());
  EXPECT_EQ(report["languages"]["zh"], (json{{"rows", 3}, {"judged", 1}, {"overall", 1.0}}));
  EXPECT_EQ(report["ranges"]["4-6k"], (json{{"rows", 2}, {"judged", 0}, {"overall", nullptr}}));
  EXPECT_EQ(report["types"]["about"]["judged"], 1);
}

TEST(Judgement, IsAskedForInBothLanguages) {
  for (const Language language : {Language::en, Language::zh}) {
    const Prompts prompts =
        Prompts::load(SELFLENGTHEN_SOURCE_DIR "/input/prompts", language, judge_prompts());
    const std::string question = judge_question(prompts, "Write of {text}.", "A {instruction} of the sea.");
    EXPECT_NE(question.find("Write of {text}."), std::string::npos);
    EXPECT_NE(question.find("A {instruction} of the sea."), std::string::npos);
    for (const char* dimension : judge_dimensions) EXPECT_NE(question.find(dimension), std::string::npos);
    // A judge that only repeats the form has not judged.
    EXPECT_EQ(fault_of(question), JudgeFault::not_json);
  }
}

}  // namespace
}  // namespace sl
