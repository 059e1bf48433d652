#include "text/length_demand.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "core/error.hpp"

namespace sl {
namespace {

void expect_rounded(int64_t words, int64_t unit, int64_t low, int64_t high, int64_t near) {
  const RoundedLength rounded = round_length(words, unit, 2000, 8000);
  EXPECT_EQ(rounded.low, low) << words << " by " << unit;
  EXPECT_EQ(rounded.high, high) << words << " by " << unit;
  EXPECT_EQ(rounded.near, near) << words << " by " << unit;
}

TEST(LengthDemand, RoundsDownUpAndToTheNearest) {
  expect_rounded(2345, 1000, 2000, 3000, 2000);
  expect_rounded(4499, 1000, 4000, 5000, 4000);
  expect_rounded(4500, 1000, 4000, 5000, 5000);
  expect_rounded(4501, 1000, 4000, 5000, 5000);
  expect_rounded(5000, 2000, 4000, 6000, 6000);
  expect_rounded(6789, 2000, 6000, 8000, 6000);
}

TEST(LengthDemand, AnExactMultipleIsItsOwnBounds) {
  expect_rounded(4000, 1000, 4000, 4000, 4000);
  expect_rounded(4000, 2000, 4000, 4000, 4000);
  expect_rounded(5000, 1000, 5000, 5000, 5000);
}

TEST(LengthDemand, NoNumberIsOutsideOfTheLimits) {
  expect_rounded(2000, 1000, 2000, 2000, 2000);
  expect_rounded(2000, 2000, 2000, 2000, 2000);
  expect_rounded(2001, 2000, 2000, 4000, 2000);
  expect_rounded(7999, 1000, 7000, 8000, 8000);
  expect_rounded(7999, 2000, 6000, 8000, 8000);
  // Where the limits are no multiples of the unit.
  const RoundedLength rounded = round_length(9, 10, 4, 12);
  EXPECT_EQ(rounded.low, 4);
  EXPECT_EQ(rounded.high, 10);
  EXPECT_EQ(rounded.near, 10);
  EXPECT_EQ(round_length(11, 10, 4, 12).high, 12);
  EXPECT_EQ(round_length(4, 10, 4, 12).near, 4);
}

TEST(LengthDemand, CoversFromTheLeastToBelowTheMost) {
  const LengthControl control;
  EXPECT_FALSE(control.covers(1999));
  EXPECT_TRUE(control.covers(2000));
  EXPECT_TRUE(control.covers(7999));
  EXPECT_FALSE(control.covers(8000));
}

TEST(LengthDemand, SharesAreThoseOfTheMethod) {
  const LengthControl control;
  constexpr int64_t draws = 20000;
  for (const Language language : {Language::en, Language::zh}) {
    std::map<DemandType, int64_t> types;
    int64_t coarse = 0, spelled = 0;
    for (int64_t sample = 0; sample < draws; ++sample) {
      Random random({.seed = 5, .sample = sample});
      const LengthDemand demand = draw_demand(random, control, 5300, language);
      ++types[demand.type];
      spelled += demand.spelled ? 1 : 0;
      // 5,300 lies between 5,000 and 6,000 by the fine unit, between 4,000 and 6,000 by the coarse one.
      if (demand.type == DemandType::range || demand.type == DemandType::above)
        coarse += demand.low == 4000 ? 1 : 0;
    }
    const auto share = [](int64_t count, int64_t of) {
      return static_cast<double>(count) / static_cast<double>(of);
    };
    EXPECT_NEAR(share(types[DemandType::about], draws), 0.40, 0.015);
    EXPECT_NEAR(share(types[DemandType::range], draws), 0.25, 0.015);
    EXPECT_NEAR(share(types[DemandType::above], draws), 0.10, 0.015);
    EXPECT_NEAR(share(types[DemandType::below], draws), 0.25, 0.015);
    EXPECT_NEAR(share(coarse, types[DemandType::range] + types[DemandType::above]), 0.2, 0.02);
    EXPECT_NEAR(share(spelled, draws), language == Language::zh ? 0.5 : 0.0, 0.015);
  }
}

TEST(LengthDemand, NamesTheNumbersOfItsType) {
  LengthControl control;
  control.coarse = 0;
  const auto drawn = [&](double about, double range, double above, double below, int64_t words) {
    control.about = about, control.range = range, control.above = above, control.below = below;
    Random random({.seed = 1});
    return draw_demand(random, control, words, Language::en);
  };
  EXPECT_EQ(drawn(1, 0, 0, 0, 4500), (LengthDemand{DemandType::about, 5000, 5000, false}));
  EXPECT_EQ(drawn(0, 1, 0, 0, 4500), (LengthDemand{DemandType::range, 4000, 5000, false}));
  EXPECT_EQ(drawn(0, 0, 1, 0, 4500), (LengthDemand{DemandType::above, 4000, 0, false}));
  EXPECT_EQ(drawn(0, 0, 0, 1, 4500), (LengthDemand{DemandType::below, 0, 5000, false}));
  // A range from a number to itself is none.
  EXPECT_EQ(drawn(0, 1, 0, 0, 4000), (LengthDemand{DemandType::about, 4000, 4000, false}));
  EXPECT_EQ(drawn(0, 1, 0, 0, 4000).numbers(), std::vector<int64_t>{4000});
  EXPECT_EQ(drawn(0, 1, 0, 0, 4500).numbers(), (std::vector<int64_t>{4000, 5000}));
  EXPECT_EQ(drawn(0, 0, 0, 1, 4500).numbers(), std::vector<int64_t>{5000});
}

TEST(LengthDemand, NumbersAsTheyAreWritten) {
  EXPECT_EQ(written_number(800, Language::en), "800");
  EXPECT_EQ(written_number(2000, Language::en), "2,000");
  EXPECT_EQ(written_number(1234567, Language::en), "1,234,567");
  EXPECT_EQ(written_number(2000, Language::zh), "2000");
}

TEST(LengthDemand, ChineseNumerals) {
  const std::map<int64_t, std::string> numerals = {{1, "一"},
                                                   {2, "二"},
                                                   {10, "十"},
                                                   {12, "十二"},
                                                   {20, "二十"},
                                                   {22, "二十二"},
                                                   {100, "一百"},
                                                   {105, "一百零五"},
                                                   {110, "一百一十"},
                                                   {200, "两百"},
                                                   {222, "两百二十二"},
                                                   {1000, "一千"},
                                                   {1001, "一千零一"},
                                                   {1010, "一千零一十"},
                                                   {2000, "两千"},
                                                   {2200, "两千二百"},
                                                   {2050, "两千零五十"},
                                                   {3000, "三千"},
                                                   {4000, "四千"},
                                                   {4500, "四千五百"},
                                                   {5000, "五千"},
                                                   {6000, "六千"},
                                                   {7000, "七千"},
                                                   {7999, "七千九百九十九"},
                                                   {8000, "八千"},
                                                   {10000, "一万"},
                                                   {10050, "一万零五十"},
                                                   {12000, "一万两千"},
                                                   {20000, "两万"},
                                                   {22000, "两万两千"},
                                                   {100000, "十万"},
                                                   {120300, "十二万零三百"},
                                                   {10000002, "一千万零二"}};
  for (const auto& [number, numeral] : numerals) EXPECT_EQ(chinese_numeral(number), numeral) << number;
  EXPECT_THROW(chinese_numeral(0), BugError);
}

TEST(LengthDemand, ARewrittenInstructionIsLookedAt) {
  const std::string before = "Write a story about a lighthouse keeper who finds a letter.";
  const LengthDemand range{DemandType::range, 2000, 3000, false};
  const auto fault = [&](const std::string& woven) { return check_woven(before, woven, range, 0.8); };
  EXPECT_EQ(fault("Write a story of 2,000 to 3000 words about a lighthouse keeper who finds a letter."),
            WeavingFault::none);
  EXPECT_EQ(fault("In 2000-3000 words, write a story about a lighthouse keeper who finds a letter."),
            WeavingFault::none);
  EXPECT_EQ(fault(" \n "), WeavingFault::empty);
  EXPECT_EQ(fault("Write a story of 2,000 words about a lighthouse keeper who finds a letter."),
            WeavingFault::number);
  EXPECT_EQ(fault("Write a story of 12,000 to 3,000 words about a lighthouse keeper who finds a letter."),
            WeavingFault::number);
  EXPECT_EQ(fault("Write a story of 2000 to 30000 words about a lighthouse keeper who finds a letter."),
            WeavingFault::number);
  EXPECT_EQ(fault("Write a story of 2000 to 3000,000 words about a lighthouse keeper."),
            WeavingFault::number);
  EXPECT_EQ(fault("Here it is:\nWrite a story of 2,000 to 3,000 words about a lighthouse keeper."),
            WeavingFault::lines);
  EXPECT_EQ(fault("A story, 2,000 to 3,000 words."), WeavingFault::length);
  EXPECT_EQ(fault("Write an essay of 2,000 to 3,000 words on the tides, the moon and the sea."),
            WeavingFault::rest);
  // Case and punctuation may change with the place of the demand.
  EXPECT_EQ(fault("In 2,000 to 3,000 words: write a story about a lighthouse keeper who finds a letter"),
            WeavingFault::none);
  std::string long_one = before + " 2,000 to 3,000 words.";
  for (int i = 0; i < 50; ++i) long_one += " more";
  EXPECT_EQ(fault(long_one), WeavingFault::length);
}

TEST(LengthDemand, ChineseNumeralsAreLookedForWhole) {
  const std::string before = "写一个关于灯塔看守人的故事。";
  const LengthDemand spelled{DemandType::about, 3000, 3000, true};
  EXPECT_EQ(check_woven(before, "写一个关于灯塔看守人的故事，大约三千字。", spelled, 0.8),
            WeavingFault::none);
  EXPECT_EQ(check_woven(before, "写一个关于灯塔看守人的故事，大约3000字。", spelled, 0.8),
            WeavingFault::number);
  EXPECT_EQ(check_woven(before, "写一个关于灯塔看守人的故事，大约三千五百字。", spelled, 0.8),
            WeavingFault::number);
  EXPECT_EQ(check_woven(before, "写一个关于灯塔看守人的故事，大约一万三千字。", spelled, 0.8),
            WeavingFault::number);
  EXPECT_EQ(check_woven(before, "写一篇大约三千字的文章，谈谈大海。", spelled, 0.8), WeavingFault::rest);
  const LengthDemand digits{DemandType::about, 3000, 3000, false};
  EXPECT_EQ(check_woven(before, "写一个关于灯塔看守人的故事，大约3000字。", digits, 0.8), WeavingFault::none);
  EXPECT_EQ(check_woven(before, "写一个关于灯塔看守人的故事，大约三千字。", digits, 0.8),
            WeavingFault::number);
}

TEST(LengthDemand, LimitsThatDoNotGoTogetherAreRefused) {
  LengthControl control;
  EXPECT_NO_THROW(control.validate());
  control.most = control.least;
  EXPECT_THROW(control.validate(), InputError);
  control = {};
  control.about = 0.5;
  EXPECT_THROW(control.validate(), InputError);
}

}  // namespace
}  // namespace sl
