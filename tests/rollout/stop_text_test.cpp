#include "rollout/stop_text.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"
#include "core/rng.hpp"
#include "rollout/request.hpp"

namespace sl {
namespace {

const std::vector<std::string> defaults = SamplingParameters().stop;

TEST(StopText, DefaultStopsAreTheMethods) {
  EXPECT_EQ(defaults, (std::vector<std::string>{"\n\n---", "\n\n\n", "\n---", "---"}));
}

TEST(StopText, RemovesTheStopAndWhatFollows) {
  StopText text(defaults);
  EXPECT_FALSE(text.append("One. ", true));
  EXPECT_TRUE(text.append("Two.\n\n---\nmore", true));
  EXPECT_EQ(text.text(), "One. Two.");
  EXPECT_TRUE(text.stopped());
  EXPECT_EQ(text.settled(), "One. Two.");
  EXPECT_THROW(text.append("x", true), BugError);
}

TEST(StopText, HoldsBackWhatMayBecomeAStop) {
  StopText text(defaults);
  text.append("One.\n", true);
  EXPECT_EQ(text.settled(), "One.");
  text.append("\n", true);
  EXPECT_EQ(text.settled(), "One.");
  text.append("-", true);
  EXPECT_EQ(text.settled(), "One.");
  text.append("Two", true);  // it did not
  EXPECT_EQ(text.settled(), "One.\n\n-Two");
  text.append("--", true);
  EXPECT_EQ(text.settled(), "One.\n\n-Two");
  EXPECT_TRUE(text.append("-", true));
  EXPECT_EQ(text.text(), "One.\n\n-Two");
}

TEST(StopText, TheStopCompletedFirstWinsAndOfEqualsTheLongest) {
  StopText inner({"abcd", "bc"});
  EXPECT_TRUE(inner.append("xabcd", true));
  EXPECT_EQ(inner.text(), "xa");
  StopText longest({"---", "\n---", "\n\n---"});
  EXPECT_TRUE(longest.append("x\n\n---", true));
  EXPECT_EQ(longest.text(), "x");
}

TEST(StopText, StopsThatMustNotEndAreText) {
  StopText text(defaults);
  EXPECT_FALSE(text.append("a---b--", false));
  EXPECT_FALSE(text.append("c--", true));
  EXPECT_TRUE(text.append("-", true));
  EXPECT_EQ(text.text(), "a---b--c");
  // Begun while it must not end, completed when it may.
  StopText across(defaults);
  EXPECT_FALSE(across.append("a--", false));
  EXPECT_TRUE(across.append("-", true));
  EXPECT_EQ(across.text(), "a");
}

TEST(StopText, WithoutStopsAllIsSettled) {
  StopText text({});
  EXPECT_FALSE(text.append("---\n\n\n", true));
  EXPECT_EQ(text.settled(), "---\n\n\n");
}

// However the text is cut, the result is the same, and what was settled stays.
TEST(StopText, CutsDoNotMatter) {
  Random random(RandomAddress{.seed = 5});
  const std::string letters = "a-\n-b\n";
  int stopped = 0;
  for (int round = 0; round < 500; ++round) {
    std::string whole;
    for (int i = 0; i < 40; ++i) whole += letters[static_cast<size_t>(random.below(6))];
    StopText at_once(defaults);
    const bool stops = at_once.append(whole, true);
    stopped += stops;
    StopText pieces(defaults);
    std::string settled;
    bool found = false;
    for (size_t at = 0; at < whole.size() && !found;) {
      const auto length = static_cast<size_t>(1 + random.below(4));
      found = pieces.append(std::string_view(whole).substr(at, length), true);
      ASSERT_TRUE(pieces.settled().starts_with(settled));
      settled = pieces.settled();
      at += length;
    }
    EXPECT_EQ(found, stops);
    EXPECT_EQ(pieces.text(), at_once.text());
  }
  EXPECT_GT(stopped, 100);
  EXPECT_LT(stopped, 450);
}

TEST(SamplingParameters, RefusesWhatIsOutOfRange) {
  const auto message = [](const SamplingParameters& parameters) -> std::string {
    try {
      parameters.validate();
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  SamplingParameters good;
  EXPECT_EQ(message(good), "");
  good.temperature = 0;
  good.top_k = 0;
  good.top_p = 1;
  EXPECT_EQ(message(good), "");
  EXPECT_EQ(message({.temperature = -1}), "temperature: -1 is not possible; it must be 0 (greedy) or more");
  EXPECT_NE(message({.temperature = std::numeric_limits<float>::quiet_NaN()}), "");
  EXPECT_NE(message({.temperature = std::numeric_limits<float>::infinity()}), "");
  EXPECT_NE(message({.top_p = 0}).find("top_p"), std::string::npos);
  EXPECT_NE(message({.top_p = 1.5F}).find("top_p"), std::string::npos);
  EXPECT_NE(message({.top_k = -1}).find("top_k"), std::string::npos);
  EXPECT_NE(message({.repetition_penalty = 0}).find("repetition_penalty"), std::string::npos);
  EXPECT_NE(message({.max_tokens = 0}).find("max_tokens"), std::string::npos);
  EXPECT_EQ(message({.max_tokens = 5, .min_tokens = 6}),
            "min_tokens: 6 is not possible; it must be between 0 and max_tokens (5)");
  EXPECT_NE(message({.stop = {"a", ""}}).find("stop"), std::string::npos);
}

TEST(FinishReason, Names) {
  EXPECT_EQ(finish_reason_name(FinishReason::stop), "stop");
  EXPECT_EQ(finish_reason_name(FinishReason::length), "length");
  EXPECT_EQ(finish_reason_name(FinishReason::hopeless), "hopeless");
  EXPECT_EQ(finish_reason_name(FinishReason::context), "context");
}

}  // namespace
}  // namespace sl
