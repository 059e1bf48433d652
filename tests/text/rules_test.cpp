#include "text/rules.hpp"

#include "core/error.hpp"
#include "text/length_score.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>
#include <random>

namespace sl {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::vector<json> rows(const std::string& name) {
  std::ifstream file(std::string(SELFLENGTHEN_SOURCE_DIR) + "/tests/reference/vectors/" + name);
  std::vector<json> result;
  for (std::string line; std::getline(file, line);) result.push_back(json::parse(line));
  return result;
}

TEST(Rules, TextVectors) {
  const auto vectors = rows("text_rules.jsonl");
  ASSERT_EQ(vectors.size(), 300U);
  for (const auto& row : vectors) {
    const auto text = row.at("text").get<std::string>();
    SCOPED_TRACE(text);
    EXPECT_EQ(count_words(text), row.at("words").get<int64_t>());
    EXPECT_EQ(accept(Language::en, text) == Rejection::none, row.at("accept_en").get<bool>());
    EXPECT_EQ(accept(Language::zh, text) == Rejection::none, row.at("accept_zh").get<bool>());
    EXPECT_EQ(first_half(text), row.at("first_half").get<std::string>());
    EXPECT_EQ(first_two_thirds(text), row.at("first_two_thirds").get<std::string>());
  }
}

TEST(Rules, LengthBiasVectors) {
  const auto vectors = rows("length_bias.jsonl");
  ASSERT_EQ(vectors.size(), 30U);
  for (const auto& row : vectors) {
    const auto expected = row.at("keep_probability").get<std::vector<double>>();
    const auto actual = length_bias_keep_probabilities(row.at("characters").get<std::vector<int64_t>>());
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-12);
  }
  EXPECT_TRUE(length_bias_keep_probabilities({}).empty());
}

TEST(Rules, LengthScoreVectors) {
  const auto vectors = rows("length_score.jsonl");
  ASSERT_EQ(vectors.size(), 300U);
  for (const auto& row : vectors) {
    const auto type = parse_length_type(row.at("type").get<std::string>());
    const auto interval = parse_constraint(type, row.at("constraint").get<std::string>());
    EXPECT_NEAR(length_score(interval, row.at("words").get<int64_t>()), row.at("score").get<double>(), 1e-12)
        << row.dump();
  }
}

TEST(Rules, LengthDemandsThatDoNotFitAreNamed) {
  EXPECT_EQ(parse_constraint(LengthType::above, "more than 12,500 words").low, 12500.0);
  for (const auto& [type, text] :
       std::vector<std::pair<LengthType, std::string>>{{LengthType::range, "around 3000 words"},
                                                       {LengthType::about, "3000-4000 words"},
                                                       {LengthType::about, "many words"},
                                                       {LengthType::below, "less than 0 words"},
                                                       {LengthType::range, "4000-3000 words"}}) {
    try {
      parse_constraint(type, text);
      FAIL() << text;
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr(text));
      EXPECT_THAT(error.what(), HasSubstr(std::string(length_type_name(type))));
    }
  }
  EXPECT_THROW(parse_length_type("exactly"), InputError);
  EXPECT_THROW(parse_language("fr"), InputError);
}

TEST(Rules, EachRuleOfAcceptanceSaysItsName) {
  EXPECT_EQ(accept(Language::en, "A line.\n"), Rejection::none);
  EXPECT_EQ(accept(Language::en, "A line"), Rejection::ending);
  EXPECT_EQ(accept(Language::en, " \n\t"), Rejection::ending);
  EXPECT_EQ(accept(Language::en, ""), Rejection::ending);
  EXPECT_EQ(accept(Language::en, "Here is the revised text.\n\nOne."), Rejection::banned_word);
  EXPECT_EQ(accept(Language::en, "One.\nTwo.\nThe response is here.\nThree.\nFour.\nFive."), Rejection::none);
  EXPECT_EQ(accept(Language::en, "One.\nTwo.\nThe response is here.\nThree.\nFour."), Rejection::banned_word);
  EXPECT_EQ(accept(Language::en, "1\n2\n3\nThe Revised text\n5."), Rejection::none);  // case matters
  EXPECT_EQ(accept(Language::en, "a b c d e f g h i j x a b c d e f g h i j."), Rejection::none);
  EXPECT_EQ(accept(Language::en, "a b c d e f g h i j x a b c d e f g h i j ."), Rejection::repetition);
  EXPECT_EQ(accept(Language::en, "no no no no no no no no no no no ."),
            Rejection::repetition);  // runs may overlap
  EXPECT_EQ(accept(Language::zh, "好的。"), Rejection::none);
  EXPECT_EQ(accept(Language::zh, "好的."), Rejection::ending);
  EXPECT_EQ(accept(Language::zh, "一二三四五六七八九十甲乙丙，一二三四五六七八九十甲乙丙。"),
            Rejection::repetition);
  EXPECT_EQ(accept(Language::zh, "一二三四五六七八九十甲乙，一二三四五六七八九十甲乙。"), Rejection::none);
  EXPECT_EQ(accept(Language::zh, "the response is 好。"), Rejection::none);
}

// Python's str.split(): the code points that separate, listed by CPython 3.11.
TEST(Rules, WhiteSpaceIsPythons) {
  const std::vector<char32_t> python = {0x9,    0xA,    0xB,    0xC,    0xD,    0x1C,   0x1D,   0x1E,
                                        0x1F,   0x20,   0x85,   0xA0,   0x1680, 0x2000, 0x2001, 0x2002,
                                        0x2003, 0x2004, 0x2005, 0x2006, 0x2007, 0x2008, 0x2009, 0x200A,
                                        0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
  std::vector<char32_t> ours;
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (is_space(c)) ours.push_back(c);
  }
  EXPECT_EQ(ours, python);
  EXPECT_EQ(trim("\u3000\n a b \u00A0\u2028"), "a b");
  EXPECT_EQ(count_words("a\u200Bb \u1680c"), 2);  // a zero-width space does not separate
  EXPECT_EQ(count_words("你好world再见，ok"), 7);
}

TEST(Rules, LanguageIsTheResponsesOwn) {
  EXPECT_EQ(detect_language("A short English text about 北京."), Language::en);
  EXPECT_EQ(detect_language("这篇文章介绍 C++ 与 MPI 的用法，以及 SLURM 的配置。"), Language::zh);
  EXPECT_EQ(detect_language(""), Language::en);
}

TEST(Rules, LinesAreRemovedByNumber) {
  const auto odd = [](int64_t line) { return line % 2 == 1; };
  EXPECT_EQ(random_line_removal("0\n1\n\n3\n4", Language::en, odd), "1\n3");
  EXPECT_EQ(random_line_removal("0\n1\n\n3\n4", Language::zh, odd), "1\n\n3");
  EXPECT_EQ(random_line_removal("0\n1\n\n3\n4", Language::en, [](int64_t) { return true; }), "0\n1\n\n3\n4");
  EXPECT_EQ(random_line_removal("0", Language::en, odd), "");
}

TEST(Unicode, MalformedBytesAreFoundAndCounted) {
  for (const std::string_view bad : {"ab\xC0\x80", "ab\xED\xA0\x80", "ab\xF5\x80\x80\x80", "ab\xE4\xBD",
                                     "ab\x80", "ab\xF4\x90\x80\x80", "ab\xE0\x80\xAF"}) {
    EXPECT_EQ(first_invalid_utf8(bad), 2U);
  }
  EXPECT_EQ(first_invalid_utf8("ab\uFFFD你😀\u07FF"), std::nullopt);
  EXPECT_EQ(count_code_points("ab\uFFFD你😀"), 5);
  for (const char32_t c : {U'a', U'é', U'你', U'😀', char32_t{0x10FFFF}, char32_t{0x7FF}, char32_t{0x800}}) {
    std::string text;
    append_utf8(text, c);
    EXPECT_EQ(decode_at(text, 0).value, c);
    EXPECT_EQ(static_cast<size_t>(decode_at(text, 0).length), text.size());
  }
}

// Texts from few words and many separators, so that repetitions, growing words and trailing space all occur.
std::string random_text(std::mt19937& random, const std::vector<std::string>& parts) {
  std::string text;
  const auto length = std::uniform_int_distribution<int>(1, 120)(random);
  for (int i = 0; i < length; ++i)
    text += parts[std::uniform_int_distribution<size_t>(0, parts.size() - 1)(random)];
  return text;
}

void check_watch(Language language, const std::vector<std::string>& parts, unsigned seed) {
  std::mt19937 random(seed);
  int reported = 0;
  int rejected = 0;
  for (int round = 0; round < 400; ++round) {
    const std::string text = random_text(random, parts);
    RepetitionWatch watch(language);
    bool repeated = false;
    for (size_t at = 0; at < text.size();) {
      const auto length = static_cast<size_t>(decode_at(text, at).length);
      repeated = watch.append(std::string_view(text).substr(at, length));
      at += length;
      // Whatever follows and however it is trimmed, accept() rejects too: try some ends that pass the other
      // rules.
      if (!repeated) continue;
      for (const std::string end : {"。", ".", "x.", "x。", " .", " 。", "\u3000。", "。\u3000\n", ". \n"}) {
        const std::string whole = text.substr(0, at) + end;
        const Rejection full = accept(language, whole);
        const Rejection trimmed = accept(language, trim(whole));
        EXPECT_TRUE(full == Rejection::repetition || full == Rejection::ending) << whole;
        EXPECT_TRUE(trimmed == Rejection::repetition || trimmed == Rejection::ending) << whole;
      }
      break;
    }
    reported += repeated ? 1 : 0;
    // The reverse: with an end that makes every word final, the watch knows all that accept() knows.
    const std::string whole = std::string(trim(text)) + (language == Language::en ? " . " : "。");
    const bool rejects = accept(language, whole) == Rejection::repetition;
    RepetitionWatch at_once(language);
    EXPECT_EQ(at_once.append(whole), rejects) << whole;
    rejected += rejects ? 1 : 0;
  }
  EXPECT_GT(reported, 40);
  EXPECT_LT(reported, 380);
  EXPECT_GT(rejected, 40);
}

TEST(RepetitionWatch, AgreesWithAcceptanceOnAllPrefixes) {
  check_watch(Language::en, {"a ", "a\n", "b ", "a", "b", " ", "\u00A0", "ab ", "a a a a ", "b c a b c "}, 1);
  check_watch(Language::zh,
              {"天", "地", "a", " ", "\u3000", "\n", "a天", "天地天地", "一二三四五六七八九十", "b "}, 2);
}

TEST(RepetitionWatch, WaitsForTheLastWordToEnd) {
  RepetitionWatch watch(Language::en);
  EXPECT_FALSE(watch.append("a b c d e f g h i j and a b c d e f g h i j"));
  EXPECT_FALSE(watch.append("ar"));
  EXPECT_FALSE(watch.append(" "));
  EXPECT_TRUE(watch.append("a b c d e f g h i j "));
  EXPECT_TRUE(watch.append("more"));
}

TEST(RepetitionWatch, IsLinearOnLongTexts) {
  RepetitionWatch watch(Language::en);
  for (int i = 0; i < 200000; ++i) ASSERT_FALSE(watch.append(std::to_string(i) + " "));
  EXPECT_EQ(accept(Language::en, std::string(2000000, 'a') + "."), Rejection::none);
}

}  // namespace
}  // namespace sl
