// generate and score over small real models, against Transformers' figures, on one rank and on several.
#include <cmath>

#include "kernels/device.hpp"
#include "tests/cli/program.hpp"
#include "tests/model/reference.hpp"
#include "tests/support.hpp"

namespace sl::test {
namespace {

using nlohmann::json;

constexpr double tolerance = 1e-4;  // of a log-probability, in fp32

class ProgramOnModel : public Program {
 protected:
  static std::string model(const std::string& name) { return reference("models/" + name); }

  // What a test of a GPU adds to a command.
  static std::vector<std::string> on_gpu(const std::string& storage) {
    return {"--device", "cuda", "--storage", storage};
  }
  using More = std::vector<std::string>;

  // Prompts as token ids without the answers they were recorded with.
  std::string prompts_of(const std::string& name) const {
    std::string text;
    for (const json& row : parse_rows(read_text(model(name) + "/greedy.jsonl")))
      text += json{{"prompt_tokens", row["prompt_tokens"]}, {"id", row["tokens"].front()}}.dump() + "\n";
    return write("prompts.jsonl", text);
  }
  static std::vector<std::string> greedy(const std::string& source, const std::string& input,
                                         const std::string& output, int tp, const More& more = {}) {
    std::vector<std::string> arguments = {"generate",
                                          "--model",
                                          source,
                                          "--input",
                                          input,
                                          "--output",
                                          output,
                                          "--tp",
                                          std::to_string(tp),
                                          "--temperature",
                                          "0",
                                          "--repetition-penalty",
                                          "1",
                                          "--max-tokens",
                                          "32",
                                          "--kv-memory",
                                          "64",
                                          "--stop",
                                          ""};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }

  void expect_greedy(const std::string& name, int ranks, int tp, const More& more = {}) {
    const Outcome outcome = run(greedy(model(name), prompts_of(name), at("out.jsonl"), tp, more), ranks);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.err.find("tokens/s"), std::string::npos) << outcome.err;
    const std::vector<json> expected = parse_rows(read_text(model(name) + "/greedy.jsonl"));
    const std::vector<json> got = rows("out.jsonl");
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(got[i]["tokens"], expected[i]["tokens"]) << name << " row " << i;
      EXPECT_EQ(got[i]["id"], expected[i]["tokens"].front());
      EXPECT_EQ(got[i]["finish_reason"], "length");
      EXPECT_TRUE(got[i]["response"].is_string());
    }
  }

  // The log-probabilities that `score` gives the recorded rows, and the recorded ones; tokens are compared.
  struct Scores {
    std::vector<double> have, want;
  };
  std::vector<Scores> scores_of(const std::string& source, const std::string& figures, int ranks, int tp,
                                const More& more = {}) {
    std::string text;
    const std::vector<json> expected = parse_rows(read_text(reference(figures)));
    for (const json& row : expected)
      text += (row.contains("text") ? json{{"text", row["text"]}} : json{{"tokens", row["tokens"]}}).dump() +
              "\n";
    std::vector<std::string> arguments = {
        "score",    "--model",       source, "--input",          write("t.jsonl", text),
        "--output", at("out.jsonl"), "--tp", std::to_string(tp), "--pass-tokens",
        "400"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run(arguments, ranks);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    std::vector<Scores> scores;
    if (outcome.code != 0) return scores;
    const std::vector<json> got = rows("out.jsonl");
    EXPECT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < std::min(got.size(), expected.size()); ++i) {
      EXPECT_EQ(got[i]["tokens"], expected[i]["tokens"]);
      scores.push_back({got[i]["logprobs"], expected[i]["logprobs"]});
      EXPECT_EQ(scores.back().have.size(), scores.back().want.size());
      double sum = 0.0;
      for (const double value : scores.back().have) sum += value;
      const double perplexity = std::exp(-sum / static_cast<double>(scores.back().have.size()));
      EXPECT_LE(std::abs(got[i]["perplexity"].get<double>() / perplexity - 1.0), 1e-6);
    }
    return scores;
  }

  void expect_scores(const std::string& source, const std::string& figures, int ranks, int tp,
                     const More& more = {}) {
    const std::vector<Scores> scores = scores_of(source, figures, ranks, tp, more);
    ASSERT_FALSE(scores.empty());
    for (size_t i = 0; i < scores.size(); ++i) {
      for (size_t t = 0; t < scores[i].want.size(); ++t) {
        EXPECT_LE(std::abs(scores[i].have.at(t) - scores[i].want[t]), tolerance)
            << source << " row " << i << " token " << t;
      }
    }
  }

  // What bf16 may change.
  void expect_scores_in_bf16(const std::string& source, const std::string& figures, int ranks, int tp) {
    std::vector<double> have, want;
    for (const Scores& row : scores_of(source, figures, ranks, tp, on_gpu("bf16"))) {
      have.insert(have.end(), row.have.begin(), row.have.end());
      want.insert(want.end(), row.want.begin(), row.want.end());
    }
    ASSERT_FALSE(want.empty());
    EXPECT_LE(relative_error(have, want), 2e-2) << source;
  }
};

TEST_F(ProgramOnModel, GeneratesAsTransformers) {
  for (const char* name : {"qwen2", "llama31", "tied", "yarn"}) expect_greedy(name, 1, 1);
}

TEST_F(ProgramOnModel, GeneratesOnSeveralRanks) {
  expect_greedy("qwen2", 2, 2);
  expect_greedy("tied", 2, 1);
  expect_greedy("llama31", 4, 4);
  expect_greedy("qwen2", 4, 2);
}

TEST_F(ProgramOnModel, ScoresAsTransformers) {
  for (const std::string name : {"qwen2", "llama31", "tied", "yarn"})
    expect_scores(model(name), "models/" + name + "/logprobs.jsonl", 1, 1);
  for (const std::string name : {"qwen2", "llama31"})
    expect_scores(reference("gguf/" + name + "/model.gguf"), "gguf/" + name + "/logprobs.jsonl", 1, 1);
}

TEST_F(ProgramOnModel, ScoresOnSeveralRanks) {
  expect_scores(model("qwen2"), "models/qwen2/logprobs.jsonl", 2, 2);
  expect_scores(model("tied"), "models/tied/logprobs.jsonl", 2, 1);
  expect_scores(model("llama31"), "models/llama31/logprobs.jsonl", 4, 4);
}

#if SELFLENGTHEN_CUDA
// Ranks of one GPU exchange through MPI.
TEST_F(ProgramOnModel, cuda_GeneratesAsTransformers) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU here";
  for (const char* name : {"qwen2", "llama31", "tied", "yarn"}) expect_greedy(name, 1, 1, on_gpu("f32"));
  expect_greedy("qwen2", 2, 2, on_gpu("f32"));
  expect_greedy("tied", 2, 1, on_gpu("f32"));
}

TEST_F(ProgramOnModel, cuda_ScoresAsTransformers) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU here";
  for (const std::string name : {"qwen2", "llama31", "tied", "yarn"}) {
    expect_scores(model(name), "models/" + name + "/logprobs.jsonl", 1, 1, on_gpu("f32"));
    expect_scores_in_bf16(model(name), "models/" + name + "/logprobs.jsonl", 1, 1);
  }
  expect_scores(model("qwen2"), "models/qwen2/logprobs.jsonl", 2, 2, on_gpu("f32"));
  expect_scores_in_bf16(model("llama31"), "models/llama31/logprobs.jsonl", 4, 4);
}

TEST_F(ProgramOnModel, cuda_ScoresSmolLM2AsTransformers) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU here";
  if (!std::filesystem::exists(smollm2_path())) GTEST_SKIP() << smollm2_path() << " is not there";
  expect_scores(smollm2_path(), "smollm2/logprobs.jsonl", 1, 1, on_gpu("f32"));
  expect_scores_in_bf16(smollm2_path(), "smollm2/logprobs.jsonl", 1, 1);
  expect_scores(smollm2_path(), "smollm2/logprobs.jsonl", 3, 3, on_gpu("f32"));
}
#endif

TEST_F(ProgramOnModel, TakesPromptsAsTextsAndTurns) {
  // The recorded chat turn, as messages and as the prompt of one user turn.
  for (const json& row : parse_rows(read_text(model("qwen2") + "/greedy.jsonl"))) {
    if (!row.contains("messages") || row["messages"].size() != 1) continue;
    const std::string input =
        write("p.jsonl", json{{"messages", row["messages"]}}.dump() + "\n" +
                             json{{"prompt", row["messages"][0]["content"]}}.dump() + "\n");
    const Outcome outcome = run(greedy(model("qwen2"), input, "-", 1));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const std::vector<json> got = parse_rows(outcome.out);
    ASSERT_EQ(got.size(), 2U);
    EXPECT_EQ(got[0]["tokens"], row["tokens"]);
    EXPECT_EQ(got[1]["tokens"], row["tokens"]);
    return;
  }
  FAIL() << "no chat turn is recorded";
}

TEST_F(ProgramOnModel, DrawsDependOnTheSeedAndTheRowAlone) {
  std::string text;
  for (int i = 0; i < 6; ++i) text += "{\"prompt\":\"A story of the sea\"}\n";
  const std::string input = write("p.jsonl", text);
  const auto responses = [&](const std::vector<std::string>& more, int ranks) {
    std::vector<std::string> arguments = {
        "generate", "--model", model("qwen2"),   "--input", input,     "--output",
        "-",        "--raw",   "--max-tokens",   "12",      "--top-p", "1",
        "--top-k",  "0",       "--deterministic"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run(arguments, ranks);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    std::vector<json> tokens;
    for (const json& row : parse_rows(outcome.out)) tokens.push_back(row["tokens"]);
    return tokens;
  };
  const std::vector<json> first = responses({"--seed", "3"}, 1);
  ASSERT_EQ(first.size(), 6U);
  EXPECT_NE(first[0], first[1]);
  EXPECT_EQ(first, responses({"--seed", "3", "--max-sequences", "1"}, 1));
  EXPECT_EQ(first, responses({"--seed", "3"}, 2));
  EXPECT_NE(first, responses({"--seed", "4"}, 1));
}

TEST_F(ProgramOnModel, TheSmallestTemperatureIsGreedy) {
  const std::string input = write("p.jsonl", "{\"prompt\":\"A story of the sea\"}\n");
  const auto tokens = [&](const std::string& temperature) {
    const Outcome outcome = run({"generate", "--model", model("qwen2"), "--input", input, "--output", "-",
                                 "--raw", "--max-tokens", "12", "--temperature", temperature});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    const std::vector<json> answer = parse_rows(outcome.out);
    return answer.empty() ? json() : answer[0]["tokens"];
  };
  const json greedy_tokens = tokens("0");
  EXPECT_FALSE(greedy_tokens.is_null());
  EXPECT_EQ(tokens("1e-40"), greedy_tokens);
  EXPECT_EQ(tokens("1e-6"), greedy_tokens);
}

TEST_F(ProgramOnModel, SearchesWithBeams) {
  const json expected = parse_rows(read_text(model("qwen2") + "/beams.jsonl")).front();
  const std::string input = write("p.jsonl", json{{"prompt_tokens", expected["prompt_tokens"]}}.dump());
  const auto arguments = [&](const std::string& tp, const std::string& beams) {
    return std::vector<std::string>{"generate",
                                    "--model",
                                    model("qwen2"),
                                    "--input",
                                    input,
                                    "--output",
                                    "-",
                                    "--tp",
                                    tp,
                                    "--beams",
                                    beams,
                                    "--length-penalty",
                                    "0.8",
                                    "--repetition-penalty",
                                    "1",
                                    "--max-tokens",
                                    "24",
                                    "--kv-memory",
                                    "64",
                                    "--stop",
                                    ""};
  };
  for (const int ranks : {1, 2}) {
    const Outcome outcome = run(arguments(std::to_string(ranks), "4"), ranks);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const json row = parse_rows(outcome.out).front();
    EXPECT_EQ(row["tokens"], expected["tokens"]);
    EXPECT_NEAR(row["score"].get<double>(), expected["score"].get<double>(), tolerance);
  }
  expect_refused(arguments("1", "0"), {"--beams", "at least 1"});
  expect_refused(arguments("1", "60"), {"beams", "60", "at most 42"});
}

TEST_F(ProgramOnModel, RefusesBadRows) {
  const std::string good = "{\"prompt\":\"a\",\"text\":\"a\"}\n";
  const auto refused = [&](const std::string& command, const std::string& line,
                           const std::vector<std::string>& words) {
    expect_refused({command, "--model", model("qwen2"), "--input", write("in.jsonl", good + line + "\n"),
                    "--output", at("out.jsonl")},
                   words);
    expect_no_file("out.jsonl");
  };
  refused("generate", "{\"text\":\"a\"}", {"in.jsonl:2", "prompt", "messages"});
  refused("generate", "{\"prompt\":1}", {"in.jsonl:2", "prompt"});
  refused("generate", "{\"messages\":[]}", {"in.jsonl:2", "messages"});
  refused("generate", "{\"messages\":[{\"role\":\"user\"}]}", {"in.jsonl:2", "content"});
  refused("generate", "{\"messages\":[{\"role\":\"robot\",\"content\":\"a\"}]}", {"in.jsonl:2", "robot"});
  refused("generate", "{\"prompt_tokens\":[5000]}", {"in.jsonl:2", "5000", "1200"});
  refused("generate", "{\"prompt_tokens\":[]}", {"in.jsonl:2", "empty"});
  refused("generate", "[1]", {"in.jsonl:2", "JSON object"});
  refused("score", "{\"tokens\":[1,5000]}", {"in.jsonl:2", "5000", "1200"});
  refused("score", "{\"text\":\"\"}", {"in.jsonl:2", "no tokens"});
  refused("score", "{\"prompt\":\"a\"}", {"in.jsonl:2", "text", "tokens"});
}

TEST_F(ProgramOnModel, ScoresASingleToken) {
  const Outcome outcome = run({"score", "--model", model("qwen2"), "--input",
                               write("t.jsonl", "{\"tokens\":[7]}\n{\"tokens\":[7,8]}\n"), "--output", "-"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const std::vector<json> got = parse_rows(outcome.out);
  EXPECT_TRUE(got.at(0)["perplexity"].is_null());
  EXPECT_EQ(got.at(0)["logprobs"], json::array());
  EXPECT_EQ(got.at(1)["logprobs"].size(), 1U);
}

TEST_F(ProgramOnModel, EndsAllRanksWithOneLine) {
  const std::string input = write("p.jsonl", "{\"prompt\":\"a\"}\n");
  const auto arguments = [&](const std::string& source, std::vector<std::string> more) {
    more.insert(more.begin(), {"generate", "--model", source, "--input", input, "--output", at("out.jsonl")});
    return more;
  };
  expect_refused(arguments(at("none"), {}), {"[rank 0]", "none", "does not exist"}, 2);
  expect_refused(arguments(model("qwen2"), {"--tp", "3"}), {"--tp", "3"}, 2);
  expect_refused(arguments(model("qwen2"), {"--tp", "3"}), {"--tp", "8 query heads", "1, 2, 4, 8"}, 3);
  expect_refused(arguments(model("qwen2"), {"--top-q", "1"}), {"--top-q", "--top-p"}, 2);
  expect_refused(arguments(model("qwen2"), {"--adapter", at("none")}), {"none"}, 2);
#if !SELFLENGTHEN_CUDA
  expect_refused(arguments(model("qwen2"), {"--device", "cuda"}), {"--device", "no CUDA"}, 2);
#endif
  expect_no_file("out.jsonl");
}

}  // namespace
}  // namespace sl::test
