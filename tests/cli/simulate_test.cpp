// bench simulate as it is typed: its lines, where lengths and steps come from, and what it refuses.
#include <fmt/format.h>

#include "io/dataset.hpp"
#include "io/run_folder.hpp"
#include "tests/cli/program.hpp"

namespace sl::test {
namespace {

std::vector<std::string> simulate(const std::vector<std::string>& more) {
  std::vector<std::string> words = {"bench", "simulate"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

// 4 samples of 10 tokens on 1, 2 and 4 replicas of one place, a second a step: 40, 20 and 10 seconds.
TEST_F(Program, SimulatesALineForEachNumberOfReplicas) {
  const Outcome outcome = run(simulate({"--lengths",       "lognormal:10,0",
                                        "--count",         "4",
                                        "--prompt-tokens", "1",
                                        "--replicas",      "1,2,4",
                                        "--max-sequences", "1",
                                        "--straggler-cut", "1",
                                        "--step-ms",       "1000",
                                        "--sequence-us",   "0",
                                        "--context-ns",    "0",
                                        "--prompt-us",     "0"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const std::vector<nlohmann::json> lines = parse_rows(outcome.out);
  ASSERT_EQ(lines.size(), 3U);
  for (size_t i = 0; i < lines.size(); ++i) {
    const int replicas = 1 << i;
    EXPECT_EQ(lines[i].at("bench"), "simulate");
    EXPECT_EQ(lines[i].at("replicas"), replicas);
    for (const char* way : {"dynamic", "static"}) {
      EXPECT_NEAR(lines[i].at(way).at("seconds").get<double>(), 40.0 / replicas, 1e-9);
      EXPECT_NEAR(lines[i].at(way).at("efficiency").get<double>(), 1.0, 1e-9);
      EXPECT_NEAR(lines[i].at(way).at("tokens_per_second").get<double>(), replicas, 1e-9);
      EXPECT_EQ(lines[i].at(way).at("idle_share_of_replicas").size(), lines[i].at("replicas").get<size_t>());
    }
  }
  const Outcome weak =
      run(simulate({"--lengths", "lognormal:10,0.3", "--count", "4", "--replicas", "3", "--weak"}));
  EXPECT_EQ(parse_rows(weak.out).at(0).at("samples"), 12);
}

TEST_F(Program, SimulatesWithMeasuredSteps) {
  // A step of 300 tokens takes 0.41 s, of which 5 prompt tokens of 2 ms. So 0.1 s, and 1 ms for each token
  // attended to; a token of a prompt takes 2 ms.
  write("steps.jsonl",
        "{\"bench\":\"decode\",\"batch\":1,\"context\":100,\"milliseconds\":200}\n"
        "{\"bench\":\"rollout\",\"sequences\":1,\"input_tokens\":200,\"output_tokens\":200,\"seconds\":4.1,"
        "\"steps\":10,\"prompt_tokens_computed\":50}\n"
        "{\"bench\":\"rollout\",\"count\":64}\n"
        "{\"bench\":\"train\"}\n"
        "{\"bench\":\"prefill\",\"context\":50,\"milliseconds\":100}\n");
  const Outcome outcome = run(simulate({"--lengths", "lognormal:3,0", "--count", "1", "--prompt-tokens", "10",
                                        "--replicas", "1", "--steps", at("steps.jsonl")}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NEAR(parse_rows(outcome.out).at(0).at("dynamic").at("seconds").get<double>(),
              0.1 + 10 * 0.002 + 0.1 + 0.011 + 0.1 + 0.012, 1e-9);
  write("one.jsonl", "{\"bench\":\"decode\",\"batch\":1,\"context\":100,\"milliseconds\":200}\n");
  expect_refused(simulate({"--steps", at("one.jsonl")}), {"one.jsonl", "different contexts"});
  write("no.jsonl", "{\"bench\":\"decode\",\"batch\":1,\"context\":100}\n");
  expect_refused(simulate({"--steps", at("no.jsonl")}), {"no.jsonl:1", "milliseconds"});
}

TEST_F(Program, SimulatesAStageOfARun) {
  std::filesystem::create_directories(at("run/iter_02"));
  std::ofstream(at("run/run.json")) << R"({"state":"done"})";
  Table stage;
  stage.attributes["report"] =
      R"({"samples":2,"accepted":2,"given_up":0,"abandoned":0,"attempts":2,"tokens":7})";
  stage.add("sample", std::vector<int64_t>{0, 1});
  stage.add("attempts", std::vector<int64_t>{1, 1});
  stage.add("tokens", std::vector<int64_t>{5, 2});
  write_table(RunFolder(at("run")).stage_file(2, "extended"), stage, MPI_COMM_NULL);
  const std::vector<std::string> second = {
      "--run",         at("run"), "--stage",         "extended", "--iteration", "2",
      "--replicas",    "2",       "--straggler-cut", "1",        "--step-ms",   "1000",
      "--sequence-us", "0",       "--context-ns",    "0",        "--prompt-us", "0"};
  const Outcome outcome = run(simulate(second));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const nlohmann::json line = parse_rows(outcome.out).at(0);
  EXPECT_NEAR(line.at("dynamic").at("seconds").get<double>(), 5.0, 1e-9);
  EXPECT_NEAR(line.at("dynamic").at("idle_share").get<double>(), 0.3, 1e-9);
  expect_refused(simulate({"--run", at("run")}), {"initial.h5", "not finished"});
  expect_refused(simulate({"--run", at("nowhere")}), {"nowhere", "not the folder of a run"});
}

TEST_F(Program, RefusesImpossibleSimulations) {
  expect_refused(simulate({"--lengths", "normal:3"}), {"--lengths", "'normal:3'", "lognormal:1000,0.5"});
  expect_refused(simulate({"--replicas", "1,x"}), {"--replicas", "'1,x'"});
  expect_refused(simulate({"--replicas", "0"}), {"--replicas", "1,2,4,8"});
  expect_refused(simulate({"--max-sequences", "64", "--max-batch-rows", "64"}), {"--max-batch-rows"});
  expect_refused(simulate({"--acceptance", "0"}), {"--acceptance", "0"});
  expect_refused(simulate({"--step-ms", "0", "--sequence-us", "0", "--context-ns", "0", "--prompt-us", "0"}),
                 {"--step-ms", "no time"});
}

}  // namespace
}  // namespace sl::test
