// The commands that need no model in memory: tokenize, detokenize, text check, evaluate longen.
#include "tests/cli/program.hpp"

namespace sl::test {
namespace {

using nlohmann::json;

TEST_F(Program, TokenizesThereAndBack) {
  for (const char* model : {"qwen2", "llama31", "tied"}) {
    const std::string source = reference("models/" + std::string(model));
    const std::vector<json> expected = parse_rows(read_text(source + "/tokens.jsonl"));
    std::string texts;
    for (const json& row : expected)
      texts += json{{"text", row["text"]}, {"id", row["text"].size()}}.dump() + "\n";
    const std::string input = write("t.jsonl", texts);
    Outcome outcome = run({"tokenize", "--model", source, "--input", input, "--output", at("o.jsonl")});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    outcome = run({"detokenize", "--model", source, "--input", at("o.jsonl"), "--output", "-"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const std::vector<json> tokenized = rows("o.jsonl"), back = parse_rows(outcome.out);
    ASSERT_EQ(tokenized.size(), expected.size());
    ASSERT_EQ(back.size(), expected.size());
    int64_t same = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(tokenized[i]["tokens"], expected[i]["tokens"]) << expected[i]["text"];
      EXPECT_EQ(tokenized[i]["id"], expected[i]["text"].size());
      same += back[i]["text"] == expected[i]["text"] ? 1 : 0;
    }
    // Texts that are not in the normal form, or hold bytes without a token, do not come back as they were.
    EXPECT_GT(same, static_cast<int64_t>(expected.size() * 9 / 10));
  }
}

TEST_F(Program, TokenizesWithAGgufFile) {
  const std::vector<json> expected = parse_rows(read_text(reference("models/qwen2/tokens.jsonl")));
  const std::string input = write("t.jsonl", json{{"text", expected.at(5)["text"]}}.dump() + "\n");
  const Outcome outcome =
      run({"tokenize", "--model", reference("gguf/qwen2/model.gguf"), "--input", input, "--output", "-"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(parse_rows(outcome.out).at(0)["tokens"], expected.at(5)["tokens"]);
}

TEST_F(Program, AddsTheStartTokenWhenAsked) {
  const std::string input = write("t.jsonl", "{\"text\":\"Hello\"}\n");
  const std::vector<std::string> arguments = {
      "tokenize", "--model", reference("models/llama31"), "--input", input, "--output", "-"};
  std::vector<std::string> asked = arguments;
  asked.push_back("--add-special");
  std::vector<int> plain = parse_rows(run(arguments).out).at(0)["tokens"];
  std::vector<int> special = parse_rows(run(asked).out).at(0)["tokens"];
  ASSERT_EQ(special.size(), plain.size() + 1);
  EXPECT_EQ(std::vector<int>(special.begin() + 1, special.end()), plain);
}

TEST_F(Program, RefusesRowsWithoutTokens) {
  const std::string model = reference("models/qwen2");
  const auto refused = [&](const std::string& command, const std::string& line,
                           const std::vector<std::string>& words) {
    const std::string input = write("in.jsonl", "{\"text\":\"a\",\"tokens\":[1]}\n" + line + "\n");
    expect_refused({command, "--model", model, "--input", input, "--output", at("out.jsonl")}, words);
    expect_no_file("out.jsonl");
  };
  refused("tokenize", "{\"text\":3}", {"in.jsonl:2", "text"});
  refused("tokenize", "{\"text\":", {"in.jsonl:2", "JSON"});
  refused("detokenize", "{\"tokens\":[-1]}", {"in.jsonl:2", "-1", "1200"});
  refused("detokenize", "{\"tokens\":[1200]}", {"in.jsonl:2", "1200"});
  refused("detokenize", "{\"tokens\":[18446744073709551615]}", {"in.jsonl:2", "18446744073709551615"});
  refused("detokenize", "{\"tokens\":[1.5]}", {"in.jsonl:2", "1.5"});
  refused("detokenize", "{\"text\":\"a\"}", {"in.jsonl:2", "tokens"});
  expect_refused({"tokenize", "--model", at("none"), "--input", write("i.jsonl", "{\"text\":\"\"}\n"),
                  "--output", at("out.jsonl")},
                 {"none", "does not exist"});
}

TEST_F(Program, ChecksTexts) {
  for (const std::string lang : {"en", "zh"}) {
    const std::vector<json> vectors = parse_rows(read_text(reference("vectors/text_rules.jsonl")));
    std::string texts;
    for (const json& row : vectors) texts += json{{"text", row["text"]}}.dump() + "\n";
    const Outcome outcome =
        run({"text", "check", "--lang", lang, "--input", write("t.jsonl", texts), "--output", "-"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const std::vector<json> checked = parse_rows(outcome.out);
    ASSERT_EQ(checked.size(), vectors.size());
    for (size_t i = 0; i < vectors.size(); ++i) {
      EXPECT_EQ(checked[i]["words"], vectors[i]["words"]);
      EXPECT_EQ(checked[i]["accept"], vectors[i]["accept_" + lang]) << i;
      EXPECT_EQ(checked[i]["first_half"], vectors[i]["first_half"]);
      EXPECT_EQ(checked[i]["first_two_thirds"], vectors[i]["first_two_thirds"]);
      EXPECT_NE(checked[i].contains("rejected"), checked[i]["accept"].get<bool>());
    }
  }
}

TEST_F(Program, RefusesOutputThatCannotBe) {
  const std::string input = write("t.jsonl", "{\"text\":\"a\"}\n");
  const auto arguments = [&](const std::string& output) {
    return std::vector<std::string>{"text", "check", "--lang", "en", "--input", input, "--output", output};
  };
  expect_refused(arguments(at("none/o.jsonl")), {"none/o.jsonl", "folder"});
  expect_refused(arguments(at("")), {"not a file"});
  expect_refused(arguments("/dev/null"), {"/dev/null"});
  expect_refused({"text", "check", "--lang", "en", "--input", write("e.jsonl", "\n"), "--output", "-"},
                 {"e.jsonl", "no rows"});
  expect_refused({"text", "check", "--lang", "en", "--input", at(""), "--output", "-"}, {"as a file"});
}

TEST_F(Program, FullDiskIsAFailureOfOneLine) {
  const std::string input = write("t.jsonl", "{\"text\":\"a\"}\n");
  const std::string command = "'" SELFLENGTHEN_BINARY "' text check --lang en --input '" + input +
                              "' --output - > /dev/full 2> '" + at("err") + "'";
  const int status = std::system(command.c_str());
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
  const std::string err = read_text(at("err"));
  EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
  EXPECT_NE(err.find("No space left"), std::string::npos) << err;
}

TEST_F(Program, FindsThePromptsFromAnyFolder) {
  const std::string help = "'" SELFLENGTHEN_BINARY "' run --help > '" + at("help") + "'";
  ASSERT_EQ(std::system(("cd / && " + help).c_str()), 0);
  EXPECT_NE(read_text(at("help")).find(SELFLENGTHEN_SOURCE_DIR "/input/prompts"), std::string::npos);
  ASSERT_EQ(std::system(("cd '" SELFLENGTHEN_SOURCE_DIR "' && " + help).c_str()), 0);
  EXPECT_NE(read_text(at("help")).find("default: input/prompts"), std::string::npos);
}

TEST_F(Program, EvaluatesLonGen) {
  const std::string about =
      "{\"language\":\"en\",\"range\":\"2-4k\",\"type\":\"about\",\"constraint\":"
      "\"around 10 words\",\"query\":\"q\",\"response\":";
  const std::string input = write("r.jsonl", about + "\"a b c d e f g h i\"}\n" + about + "\"a b c d\"}\n");
  const Outcome outcome = run({"evaluate", "longen", "--data", input});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json report = json::parse(outcome.out);
  EXPECT_DOUBLE_EQ(report["about"].get<double>(), 0.5);  // 9 of 8-12 words: 1; 4 of 8: 0
  EXPECT_DOUBLE_EQ(report["overall"].get<double>(), 0.5);
  EXPECT_TRUE(report["range"].is_null());
  EXPECT_EQ(report["counts"]["about"], 2);
  EXPECT_EQ(report["counts"]["overall"], 2);
  EXPECT_EQ(report["languages"]["en"]["counts"]["overall"], 2);
  EXPECT_EQ(report["ranges"]["2-4k"]["overall"], 0.5);

  const auto refused = [&](const std::string& line, const std::vector<std::string>& words) {
    expect_refused({"evaluate", "longen", "--data", write("bad.jsonl", about + "\"a\"}\n" + line + "\n")},
                   words);
  };
  refused("{\"type\":\"about\",\"constraint\":\"around 10 words\"}", {"bad.jsonl:2", "response"});
  refused("{\"type\":\"near\",\"constraint\":\"10\",\"response\":\"a\"}", {"bad.jsonl:2", "near"});
  refused("{\"type\":\"range\",\"constraint\":\"10 words\",\"response\":\"a\"}", {"bad.jsonl:2", "10 words"});
}

}  // namespace
}  // namespace sl::test
