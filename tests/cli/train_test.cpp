// train and export: what is trained, continued, merged and opened again, by the real program.
#include <cmath>

#include "io/checksum.hpp"
#include "tests/cli/program.hpp"

namespace sl::test {
namespace {

using nlohmann::json;

constexpr double tolerance = 1e-4;  // of a log-probability, in fp32

class ProgramThatTrains : public Program {
 protected:
  static std::string model(const std::string& name) { return reference("models/" + name); }
  std::string data() const {
    return write(
        "data.jsonl",
        R"({"instruction": "Say it", "output": "The sea is wide."})"
        "\n"
        R"({"messages": [{"role": "user", "content": "Hm"}, {"role": "assistant", "content": "Yes"}]})"
        "\n");
  }
  std::vector<std::string> train(const std::string& source, const std::string& output) const {
    return {"train", "--model",         source, "--data",   data(), "--output", at(output), "--epochs",
            "3",     "--learning-rate", "0.01", "--device", "cpu"};
  }
  // Log-probabilities of a text by a model, with or without an adapter.
  std::vector<json> score(const std::string& source, const std::string& adapter = "") const {
    write("texts.jsonl", R"({"text": "The sea is wide. 12345 and more"})"
                         "\n");
    std::vector<std::string> arguments = {"score",    "--model",         source, "--input", at("texts.jsonl"),
                                          "--output", at("scored.jsonl")};
    if (!adapter.empty()) arguments.insert(arguments.end(), {"--adapter", adapter});
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return rows("scored.jsonl");
  }
  static void expect_same(const std::vector<json>& a, const std::vector<json>& b) {
    ASSERT_EQ(a.size(), 1U);
    ASSERT_EQ(b.size(), 1U);
    EXPECT_EQ(a[0]["tokens"], b[0]["tokens"]);
    const auto first = a[0]["logprobs"].get<std::vector<double>>();
    const auto second = b[0]["logprobs"].get<std::vector<double>>();
    ASSERT_EQ(first.size(), second.size());
    ASSERT_GT(first.size(), 3U);
    for (size_t i = 0; i < first.size(); ++i) EXPECT_LE(std::abs(first[i] - second[i]), tolerance) << i;
  }
};

TEST_F(ProgramThatTrains, AnAdapterIsTrainedOnceAndMerges) {
  const Outcome outcome = run(train(model("qwen2"), "adapter"));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const std::vector<json> metrics = rows("adapter/metrics.jsonl");
  ASSERT_EQ(metrics.size(), 6U);
  for (size_t i = 0; i < metrics.size(); ++i) {
    EXPECT_EQ(metrics[i]["step"], i + 1);
    EXPECT_EQ(metrics[i]["skipped"], false);
    for (const char* key : {"loss", "learning_rate", "grad_norm", "tokens_per_second"})
      EXPECT_TRUE(metrics[i][key].is_number()) << key;
  }
  EXPECT_FALSE(std::filesystem::exists(at("adapter/checkpoint.h5")));
  const Outcome again = run(train(model("qwen2"), "adapter"));
  EXPECT_EQ(again.code, 0);
  EXPECT_NE(again.err.find("finished"), std::string::npos) << again.err;
  EXPECT_EQ(rows("adapter/metrics.jsonl").size(), 6U);

  ASSERT_EQ(
      run({"export", "--model", model("qwen2"), "--adapter", at("adapter"), "--output", at("merged")}).code,
      0);
  const auto with_adapter = score(model("qwen2"), at("adapter"));
  expect_same(with_adapter, score(at("merged")));
  EXPECT_NE(with_adapter[0]["logprobs"], score(model("qwen2"))[0]["logprobs"]);
  expect_no_file("merged.partial");
  expect_refused({"export", "--model", model("qwen2"), "--output", at("merged")}, {"merged", "exists"});
  expect_refused({"export", "--model", model("llama31"), "--adapter", at("adapter"), "--output", at("other")},
                 {"adapter"});
  expect_no_file("other");
}

TEST_F(ProgramThatTrains, AllWeightsBecomeAModelThatOpens) {
  std::vector<std::string> arguments = train(model("tied"), "full");
  arguments.insert(arguments.end(), {"--finetune", "full"});
  const Outcome outcome = run(arguments);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(score(at("full"))[0]["logprobs"], score(model("tied"))[0]["logprobs"]);
}

TEST_F(ProgramThatTrains, AModelFromGgufKeepsTokensAndFigures) {
  for (const char* name : {"qwen2", "llama31"}) {
    const std::string source = reference(std::string("gguf/") + name + "/model.gguf");
    const Outcome outcome = run({"export", "--model", source, "--output", at(name)});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    expect_same(score(source), score(at(name)));
  }
}

TEST_F(ProgramThatTrains, BadInputIsOneLineAndNamesTheRow) {
  const std::string bad = write("bad.jsonl", R"({"instruction": "a", "output": "b"})"
                                             "\n"
                                             R"({"instruction": "a"})"
                                             "\n");
  expect_refused({"train", "--model", model("qwen2"), "--data", bad, "--output", at("out")},
                 {"bad.jsonl:2", "output"});
  expect_no_file("out");
  expect_refused(
      {"train", "--model", model("qwen2"), "--data", write("empty.jsonl", ""), "--output", at("out")},
      {"empty.jsonl"});
  expect_refused({"train", "--model", model("qwen2"), "--data", data(), "--output", write("taken", "x")},
                 {"taken", "file"});
  expect_refused({"export", "--run", at("none"), "--dataset", "extended", "--output", at("o.jsonl")},
                 {"none"});
  expect_refused({"inspect", "--state", at("none")}, {"none"});
}

TEST_F(ProgramThatTrains, InspectSaysWhetherWorkIsLeftAndWhatIsDamaged) {
  std::filesystem::create_directories(at("run/iter_01"));
  write("run/run.json", sealed({{"state", "stopped"}}).dump());
  Outcome outcome = run({"inspect", "--state", at("run")});
  EXPECT_EQ(outcome.code, 75);
  EXPECT_EQ(outcome.out, "stopped\n");
  EXPECT_EQ(run({"inspect", "--verify", at("run")}).code, 0);
  write("run/run.json", sealed({{"state", "done"}}).dump());
  EXPECT_EQ(run({"inspect", "--state", at("run")}).code, 0);
  write("run/iter_01/initial.h5", "damaged");
  outcome = run({"inspect", "--verify", at("run")});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_NE(outcome.out.find("initial.h5"), std::string::npos) << outcome.out;
  outcome = run({"inspect", model("qwen2")});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("Qwen2"), std::string::npos) << outcome.out;
}

}  // namespace
}  // namespace sl::test
