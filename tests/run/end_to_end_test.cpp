// From nothing to an evaluated model, with the commands that a user gives: run, collect, export, train,
// export, evaluate.
#include <gtest/gtest.h>

#include "io/json_lines.hpp"
#include "launch.hpp"

namespace sl::test {
namespace {

using nlohmann::json;

TEST(EndToEnd, RunToEvaluation) {
  const ScratchFolder scratch;
  const std::string run = scratch / "run", rows = scratch / "final.jsonl", adapter = scratch / "adapter",
                    merged = scratch / "merged";
  const auto done = [](int ranks, std::vector<std::string> words) {
    words.insert(words.begin(), SELFLENGTHEN_BINARY);
    const Ended ended = run_job(ranks, words);
    EXPECT_EQ(ended.status, 0) << words[1] << ": " << ended.err;
    return ended.status == 0;
  };
  ASSERT_EQ(run_job(2, tiny_run(run, {"--iterations", "1"})).status, 0);
  ASSERT_TRUE(done(2, {"collect", "--run",
                       run,       "--instructions",
                       "4",       "--batch",
                       "4",       "--kv-memory",
                       "64",      "--max-sequences",
                       "16",      "--threads",
                       "1",       "--control-least",
                       "2",       "--control-most",
                       "8",       "--control-unit",
                       "2",       "--control-coarse-unit",
                       "4",       "--control-attempts",
                       "1",       "--control-tokens",
                       "16"}));
  ASSERT_TRUE(done(1, {"export", "--run", run, "--dataset", "final", "--output", rows}));
  ASSERT_TRUE(done(2, {"train", "--model", tiny_model, "--data", rows, "--output", adapter, "--epochs", "2",
                       "--learning-rate", "1e-2", "--cutoff", "512", "--threads", "1"}));
  ASSERT_TRUE(done(1, {"export", "--model", tiny_model, "--adapter", adapter, "--output", merged}));

  std::string queries;
  for (const char* type : {"about", "range", "above", "below"}) {
    queries += json{{"language", "en"},
                    {"range", "2-4k"},
                    {"type", type},
                    {"constraint", type == std::string("range") ? "4-8 words" : "8 words"},
                    {"query", "Write of the sea."}}
                   .dump() +
               "\n";
  }
  write_bytes(scratch / "longen.jsonl", queries);
  // The adapter and the merged model are the same model, which is not the one that it began from.
  std::map<std::string, json> reports;
  std::map<std::string, std::vector<JsonRow>> answered;
  for (const std::string name : {"base", "adapted", "merged"}) {
    std::vector<std::string> words = {"evaluate",
                                      "longen",
                                      "--data",
                                      scratch / "longen.jsonl",
                                      "--model",
                                      name == "merged" ? merged : tiny_model,
                                      "--temperature",
                                      "0",
                                      "--max-tokens",
                                      "8",
                                      "--kv-memory",
                                      "64",
                                      "--judge",
                                      "--judge-attempts",
                                      "2",
                                      "--judge-tokens",
                                      "8",
                                      "--threads",
                                      "1",
                                      "--rows",
                                      scratch / (name + ".jsonl"),
                                      "--output",
                                      scratch / (name + ".json"),
                                      "--table",
                                      scratch / (name + ".txt")};
    if (name == "adapted") words.insert(words.end(), {"--adapter", adapter});
    ASSERT_TRUE(done(2, words));
    reports[name] = json::parse(read_bytes(scratch / (name + ".json")));
    answered[name] = read_json_lines(scratch / (name + ".jsonl"));
    EXPECT_EQ(reports[name]["counts"]["overall"], 4);
    EXPECT_EQ(reports[name]["judge"]["rows"], 4);
    EXPECT_EQ(reports[name]["judge"]["judged"].get<int>() +
                  reports[name]["judge"]["not_judged"]["refused"].get<int>(),
              4);
    EXPECT_NE(read_bytes(scratch / (name + ".txt")).find("language"), std::string::npos);
  }
  int differ = 0;
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(answered["adapted"][i].value["response"], answered["merged"][i].value["response"]);
    differ += answered["adapted"][i].value["response"] != answered["base"][i].value["response"] ? 1 : 0;
  }
  EXPECT_GT(differ, 0) << "training has changed nothing";

  write_bytes(scratch / "choices.jsonl",
              "{\"question\":\"Where?\",\"choices\":[\"at sea\",\"on land\"],\"answer\":\"at sea\"}\n");
  std::map<std::string, std::vector<double>> choices;
  for (const std::string name : {"adapted", "merged"}) {
    std::vector<std::string> words = {"evaluate",  "choice",
                                      "--data",    scratch / "choices.jsonl",
                                      "--model",   name == "merged" ? merged : tiny_model,
                                      "--rows",    scratch / (name + "_choices"),
                                      "--threads", "1"};
    if (name == "adapted") words.insert(words.end(), {"--adapter", adapter});
    ASSERT_TRUE(done(2, words));
    choices[name] =
        read_json_lines(scratch / (name + "_choices")).front().value["logprobs"].get<std::vector<double>>();
  }
  ASSERT_EQ(choices["adapted"].size(), 2U);
  for (size_t c = 0; c < 2; ++c) EXPECT_NEAR(choices["adapted"][c], choices["merged"].at(c), 1e-3);
}

}  // namespace
}  // namespace sl::test
