// export: the folder of a merged model gives PEFT's figures here, and in Transformers what it gives here.
#include <cmath>

#include "tests/cli/program.hpp"

namespace sl::test {
namespace {

using nlohmann::json;

constexpr double tolerance = 1e-4;  // of a log-probability, in fp32

class ProgramExports : public Program {
 protected:
  // Exports, and scores what is recorded in `figures` with the folder; the scores stay in NAME.jsonl.
  void expect_figures(const std::string& name, const std::vector<std::string>& source,
                      const std::string& figures, const std::vector<std::string>& more = {}, int ranks = 1) {
    std::vector<std::string> words = {"export", "--output", at(name)};
    words.insert(words.end(), source.begin(), source.end());
    words.insert(words.end(), more.begin(), more.end());
    const Outcome exported = run(words, ranks);
    ASSERT_EQ(exported.code, 0) << exported.err;
    const std::vector<json> expected = parse_rows(read_text(reference(figures)));
    ASSERT_FALSE(expected.empty());
    std::string input;
    for (json row : expected) {
      if (row.contains("text")) row.erase("tokens");  // the exported tokenizer finds them
      row.erase("logprobs");
      input += row.dump() + "\n";
    }
    const Outcome scored = run(
        {"score", "--model", at(name), "--input", write("in.jsonl", input), "--output", at(name + ".jsonl")});
    ASSERT_EQ(scored.code, 0) << scored.err;
    const std::vector<json> got = rows(name + ".jsonl");
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i]["tokens"], expected[i]["tokens"]) << name << " row " << i;
      const std::vector<double> have = got[i]["logprobs"], want = expected[i]["logprobs"];
      ASSERT_EQ(have.size(), want.size());
      for (size_t t = 0; t < want.size(); ++t)
        EXPECT_LE(std::abs(have[t] - want[t]), tolerance) << name << " row " << i << " token " << t;
    }
    checked_ += " '" + at(name) + "' '" + at(name + ".jsonl") + "'";
  }

  std::string checked_;  // folders and their scores
};

TEST_F(ProgramExports, GivesThePublishedFigures) {
  for (const std::string name : {"tied", "qwen2"}) {
    const std::vector<std::string> adapted = {"--model", reference("models/" + name), "--adapter",
                                              reference("peft/" + name + "/final")};
    expect_figures("merged_" + name, adapted, "peft/" + name + "/merged.jsonl");
  }
  expect_figures("merged_tp",
                 {"--model", reference("models/qwen2"), "--adapter", reference("peft/qwen2/final")},
                 "peft/qwen2/merged.jsonl", {"--tp", "2"}, 2);
  // Every family, from shards, and from the names, the order of rows and the tokenizer of GGUF.
  for (const std::string name : {"llama31", "qwen2", "tied", "yarn"})
    expect_figures(name, {"--model", reference("models/" + name)}, "models/" + name + "/logprobs.jsonl");
  for (const std::string name : {"llama31", "qwen2"}) {
    expect_figures("gguf_" + name, {"--model", reference("gguf/" + name + "/model.gguf")},
                   "gguf/" + name + "/logprobs.jsonl");
  }
  if (HasFatalFailure()) return;

  const std::string tree = SELFLENGTHEN_SOURCE_DIR, python = tree + "/.venv/bin/python";
  if (!std::filesystem::exists(python)) GTEST_SKIP() << python << " is not there; the rest holds";
  const std::string command = "OMP_NUM_THREADS=1 '" + python + "' '" + tree +
                              "/tools/oracle/check_export.py'" + checked_ + " > '" + at("said") + "' 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0) << read_text(at("said"));
}

}  // namespace
}  // namespace sl::test
