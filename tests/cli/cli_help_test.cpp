// What the program says about itself, and about names it does not know.
#include "tests/cli/program.hpp"

namespace sl::test {
namespace {

const char* const all_commands[] = {
    "run", "generate", "score", "evaluate longen", "evaluate choice", "text check", "tokenize", "detokenize"};

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream stream(text);
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

TEST_F(Program, TeachesWithoutArguments) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{}, {"--help"}}) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 0);
    EXPECT_EQ(outcome.err, "");
    for (const std::string command : all_commands) {
      EXPECT_NE(outcome.out.find("\n  " + command + " "), std::string::npos) << command;
      EXPECT_NE(outcome.out.find("selflengthen " + command + " --"), std::string::npos) << command;
    }
  }
}

TEST_F(Program, EveryCommandExplainsItself) {
  for (const std::string command : all_commands) {
    std::vector<std::string> arguments = words_of(command);
    arguments.push_back("--help");
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 0) << command;
    EXPECT_EQ(outcome.err, "");
    EXPECT_EQ(outcome.out.find("Usage: selflengthen " + command), 0U) << outcome.out;
    EXPECT_NE(outcome.out.find("(required)"), std::string::npos) << command;
    EXPECT_NE(outcome.out.find("Examples"), std::string::npos) << command;
  }
}

TEST_F(Program, ShowsDefaultsOfTheMethod) {
  const std::string help = run({"generate", "--help"}).out;
  for (const char* text : {"--temperature X", "(default: 0.7)", "(default: 0.8)", "(default: 16384)",
                           "\"\\n\\n---\"", "\"\\n\\n\\n\" \"\\n---\" \"---\""}) {
    EXPECT_NE(help.find(text), std::string::npos) << text;
  }
}

TEST_F(Program, PrintsItsVersion) {
  const Outcome outcome = run({"--version"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.out, "selflengthen " SELFLENGTHEN_VERSION "\n");
}

TEST_F(Program, NamesTheNearestCommandAndOption) {
  expect_refused({"genrate"}, {"genrate", "no such command", "generate"});
  expect_refused({"text", "chekc", "--lang", "en"}, {"'text check'"});
  expect_refused({"evaluate"}, {"'evaluate longen'"});
  expect_refused({"qqqqqqqqqq"}, {"--help"});
  expect_refused({"generate", "--modle", "x"}, {"--modle", "--model"});
  expect_refused({"generate", "--temperatur=1"}, {"--temperature"});
  expect_refused({"generate", "--zzzzzzzzzzzz", "1"}, {"generate --help"});
  expect_refused({"generate", "-m", "x"}, {"-m", "options are long"});
}

TEST_F(Program, RefusesImpossibleValues) {
  const std::vector<std::string> most = {"generate", "--model", "m", "--input", "i", "--output", "o"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), most.begin(), most.end());
    return more;
  };
  expect_refused(with({"--top-p", "1.5"}), {"--top-p", "1.5", "at most 1"});
  expect_refused(with({"--temperature", "-1"}), {"--temperature", "-1", "at least 0"});
  expect_refused(with({"--temperature", "nan"}), {"--temperature", "nan"});
  expect_refused(with({"--temperature", "inf"}), {"--temperature", "'inf'", "not a number"});
  expect_refused(with({"--max-tokens", "0"}), {"--max-tokens", "at least 1"});
  expect_refused(with({"--max-tokens", "12x"}), {"--max-tokens", "'12x'", "whole number"});
  expect_refused(with({"--max-tokens", "99999999999999999999"}), {"--max-tokens", "too large"});
  expect_refused(with({"--temperature", "5e-324"}), {"--temperature", "near to 0"});
  expect_refused(with({"--seed", "-1"}), {"--seed"});
  expect_refused(with({"--raw=maybe"}), {"--raw", "maybe"});
  expect_refused(with({"--device", "gpu"}), {"--device", "gpu", "auto, cpu, cuda, debug", "cpu"});
  expect_refused(with({"--min-tokens", "9", "--max-tokens", "5"}), {"min_tokens", "9", "5"});
  expect_refused(with({"--stop", "\\x"}), {"--stop", "backslash"});
  expect_refused(with({"--seed", "1", "--seed", "2"}), {"--seed", "more than once"});
  expect_refused(with({"stray"}), {"stray"});
  expect_refused(with({"--adapter"}), {"--adapter", "missing"});
  expect_refused({"generate", "--model", "m"}, {"--input, --output are missing"});
}

TEST_F(Program, ReadsOptionsFromAFile) {
  const std::string texts = write("t.jsonl", "{\"text\":\"One. Two.\"}\n");
  const std::string config = write("c.cfg", "# rules\nlang = zh   # Chinese\n\ninput = " + texts + "\n");
  // The file alone, and the command line over it: a full stop ends a text in English only.
  EXPECT_EQ(run({"text", "check", "--config", config, "--output", at("a.jsonl")}).code, 0);
  EXPECT_EQ(run({"text", "check", "--lang", "en", "--config", config, "--output", at("b.jsonl")}).code, 0);
  EXPECT_FALSE(rows("a.jsonl").at(0)["accept"].get<bool>());
  EXPECT_TRUE(rows("b.jsonl").at(0)["accept"].get<bool>());

  const std::vector<std::string> start = {"text", "check", "--output", at("o.jsonl"), "--config"};
  const auto refused = [&](const std::string& text, const std::vector<std::string>& words) {
    std::vector<std::string> arguments = start;
    arguments.push_back(write("bad.cfg", text));
    expect_refused(arguments, words);
  };
  // As a Windows editor writes it.
  const std::string windows = write("w.cfg", "\xEF\xBB\xBFlang = en\r\ninput = " + texts + "\r\n");
  EXPECT_EQ(run({"text", "check", "--config", windows, "--output", at("w.jsonl")}).code, 0);
  EXPECT_EQ(read_text(at("w.jsonl")), read_text(at("b.jsonl")));
  refused("lang = en\n\nimput = x\n", {"bad.cfg:3", "imput", "input"});
  refused("lang = fr\n", {"bad.cfg:1", "lang", "fr"});
  refused("lang\n", {"bad.cfg:1", "name = value"});
  refused("lang = en\nlang = zh\n", {"bad.cfg:2", "more than once"});
  expect_refused({"text", "check", "--config", at("none.cfg")}, {"none.cfg"});
}

}  // namespace
}  // namespace sl::test
