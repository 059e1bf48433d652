#include "text/prompts.hpp"

#include "core/error.hpp"
#include "text/rules.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace sl {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

const fs::path input = fs::path(SELFLENGTHEN_SOURCE_DIR) / "input";

// A copy of the project's prompts and seeds, removed at the end of the test, in which a test may spoil a
// file.
class SpoiltInput : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) /
              ("selflengthen_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(folder_);
    fs::copy(input, folder_, fs::copy_options::recursive);
  }
  void TearDown() override { fs::remove_all(folder_); }
  void write(const std::string& name, const std::string& text) { std::ofstream(folder_ / name) << text; }

  template <typename Call>
  std::string message(Call call) {
    try {
      call();
    } catch (const InputError& error) {
      return error.what();
    }
    return "no InputError";
  }
  std::string load_message() {
    return message([&] { Prompts::load(folder_ / "prompts", Language::en); });
  }
  std::string seed_message() {
    return message([&] { load_seeds(folder_ / "seeds", Language::en); });
  }

  fs::path folder_;
};

TEST(Prompts, BothLanguagesAreComplete) {
  for (const Language language : {Language::en, Language::zh}) {
    for (const auto& kinds : {method_prompts(), judge_prompts()}) {
      const Prompts prompts = Prompts::load(input / "prompts", language, kinds);
      for (const PromptKind& kind : kinds) {
        PromptValues values;
        for (const std::string& name : kind.placeholders) values[name] = "<" + name + ">";
        const std::string text = prompts.render(kind.name, values);
        if (kind.name != "instruct_begun") {  // which is little but numbers
          EXPECT_EQ(detect_language(text), language) << text;
        }
        for (const auto& [name, value] : values) EXPECT_THAT(text, HasSubstr(value));
      }
    }
  }
}

TEST(Prompts, TheBegunTurnHoldsTwoInstructionsAndTheNumberOfTheThird) {
  const Prompts english = Prompts::load(input / "prompts", Language::en);
  EXPECT_EQ(english.render("instruct_begun", {{"first", "Write a."}, {"second", "Write b."}}),
            "1: Write a.\n2: Write b.\n3:");
  EXPECT_EQ(english.fourth_marker(), "\n4:");
  EXPECT_EQ(Prompts::load(input / "prompts", Language::zh).fourth_marker(), "\n4：");
}

TEST(Prompts, ValuesAreNotSearchedForPlaceholders) {
  const Prompts prompts = Prompts::load(input / "prompts", Language::en);
  const std::string text =
      prompts.render("extend", {{"instruction", "about {text}"}, {"text", "{instruction} {x"}});
  EXPECT_THAT(text, AllOf(HasSubstr("about {text}"), HasSubstr("{instruction} {x")));
  EXPECT_THROW(prompts.render("extend", {{"instruction", "a"}}), BugError);
  EXPECT_THROW(prompts.render("extend", {{"instruction", "a"}, {"text", "b"}, {"more", "c"}}), BugError);
  EXPECT_THROW(prompts.render("no_such", {}), BugError);
}

TEST_F(SpoiltInput, EachFaultOfAPromptIsNamed) {
  EXPECT_EQ(load_message(), "no InputError");
  fs::remove(folder_ / "prompts/en/judge_response.txt");  // of an evaluation, not of a run
  EXPECT_EQ(load_message(), "no InputError");
  write("prompts/en/extend.txt", "Write {text} again, {not a name}, { and } stay.");
  EXPECT_THAT(load_message(), AllOf(HasSubstr("extend.txt"), HasSubstr("lacks {instruction}")));
  write("prompts/en/extend.txt", "{instruction} {text} {colour}");
  EXPECT_THAT(load_message(), AllOf(HasSubstr("extend.txt"), HasSubstr("{colour}")));
  write("prompts/en/extend.txt", " \n");
  EXPECT_THAT(load_message(), AllOf(HasSubstr("extend.txt"), HasSubstr("empty")));
  write("prompts/en/extend.txt", "{instruction} {text} \xFF");
  EXPECT_THAT(load_message(), AllOf(HasSubstr("extend.txt"), HasSubstr("byte 21")));
  fs::remove(folder_ / "prompts/en/extend.txt");
  EXPECT_THAT(load_message(), AllOf(HasSubstr("extend.txt"), HasSubstr("cannot read")));
}

TEST_F(SpoiltInput, TheThirdInstructionMustBeNumbered) {
  write("prompts/en/instruct_begun.txt", "{first}\n{second}\nNext:");
  EXPECT_THAT(load_message(), AllOf(HasSubstr("instruct_begun.txt"), HasSubstr("third")));
}

TEST(Seeds, ThereAreEnoughOfThemInEachLanguage) {
  for (const Language language : {Language::en, Language::zh}) {
    const auto seeds = load_seeds(input / "seeds", language);
    EXPECT_GE(seeds.size(), 30U);
    for (const std::string& seed : seeds) {
      EXPECT_EQ(detect_language(seed), language) << seed;
      EXPECT_GT(count_words(seed), 3) << seed;  // METHOD.md's bounds on an accepted instruction
      EXPECT_LT(count_words(seed), 500) << seed;
      EXPECT_EQ(seed.find('\n'), std::string::npos) << seed;
    }
  }
}

TEST_F(SpoiltInput, EachFaultOfASeedIsNamedWithItsLine) {
  const std::string good = R"({"instruction": "Write one."})";
  write("seeds/en.jsonl", good + "\n{\"instruction\": ");
  EXPECT_THAT(seed_message(), AllOf(HasSubstr("en.jsonl line 2"), HasSubstr("instruction")));
  write("seeds/en.jsonl", good + "\n\n" + good + "\n");
  EXPECT_THAT(seed_message(), AllOf(HasSubstr("line 3"), HasSubstr("twice")));
  write("seeds/en.jsonl", good + "\n{\"instruction\": \" \"}\n");
  EXPECT_THAT(seed_message(), AllOf(HasSubstr("line 2"), HasSubstr("empty")));
  write("seeds/en.jsonl", good + "\n");
  EXPECT_THAT(seed_message(), HasSubstr("fewer than 2"));
  fs::remove(folder_ / "seeds/en.jsonl");
  EXPECT_THAT(seed_message(), AllOf(HasSubstr("en.jsonl"), HasSubstr("cannot read")));
}

}  // namespace
}  // namespace sl
