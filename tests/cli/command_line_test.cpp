// CommandLine::take_over: options of an earlier command as the defaults of this one.
#include "cli/command_line.hpp"

#include <gtest/gtest.h>

namespace sl {
namespace {

using nlohmann::json;

enum class Colour : uint8_t { red, green };

struct Options {
  int64_t count = 1;
  float share = 0.5F;
  bool flag = false;
  std::string name = "none";
  std::vector<std::string> stops = {"a", "b"};
  Colour colour = Colour::red;

  Options() {
    line.add("count", count, "", at_least(1));
    line.add("share", share, "", between(0, 1));
    line.add("flag", flag, "");
    line.add("name", name, "");
    line.add("stop", stops, "", [](const std::string& value, const std::string&) {
      return value == "\\\\" ? "\\" : value;  // as options that know escapes read it
    });
    line.add_choice("colour", colour, {{"red", Colour::red}, {"green", Colour::green}}, "");
  }
  CommandLine line{"test", ""};
};

TEST(TakeOver, GivesWhatAnEarlierCommandResolved) {
  Options earlier;
  ASSERT_TRUE(earlier.line.parse({"--count", "7", "--share", "0.1", "--flag", "--name", "x y", "--stop",
                                  "\\\\", "--stop", "c", "--colour", "green"}));
  Options later;
  ASSERT_TRUE(later.line.parse({}));
  later.line.take_over(earlier.line.resolved(), {}, "run.json");
  EXPECT_EQ(later.line.resolved(), earlier.line.resolved());
  EXPECT_EQ(later.count, 7);
  EXPECT_EQ(later.share, 0.1F);
  EXPECT_TRUE(later.flag);
  EXPECT_EQ(later.stops, (std::vector<std::string>{"\\", "c"}));
  EXPECT_EQ(later.colour, Colour::green);
  EXPECT_FALSE(later.line.given("count")) << "it is a default, not the user's";
}

TEST(TakeOver, TheUserAndTheExceptionsWin) {
  Options options;
  ASSERT_TRUE(options.line.parse({"--count", "3"}));
  options.line.take_over({{"count", 9}, {"share", 0.25}, {"name", "other"}, {"unknown", {1, 2}}}, {"name"},
                         "run.json");
  EXPECT_EQ(options.count, 3);
  EXPECT_EQ(options.share, 0.25F);
  EXPECT_EQ(options.name, "none");
}

TEST(TakeOver, AnEmptyListStaysEmpty) {
  Options options;
  ASSERT_TRUE(options.line.parse({}));
  options.line.take_over({{"stop", json::array()}}, {}, "run.json");
  EXPECT_TRUE(options.stops.empty());
}

TEST(TakeOver, NamesWhatCannotBe) {
  const auto message = [](const json& resolved) -> std::string {
    Options options;
    EXPECT_TRUE(options.line.parse({}));
    try {
      options.line.take_over(resolved, {}, "run.json");
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message({{"count", 0}}).find("run.json: count"), std::string::npos);
  EXPECT_NE(message({{"count", "many"}}).find("many"), std::string::npos);
  EXPECT_NE(message({{"share", nullptr}}).find("run.json: share"), std::string::npos);
  EXPECT_NE(message({{"flag", "perhaps"}}).find("run.json: flag"), std::string::npos);
  EXPECT_NE(message({{"colour", "blue"}}).find("run.json: colour"), std::string::npos);
}

}  // namespace
}  // namespace sl
