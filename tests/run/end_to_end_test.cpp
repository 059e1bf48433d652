// From nothing to an evaluated model, with the commands that a user gives: run, collect, export, train,
// export, evaluate. On a tiny random model, and on SmolLM2.
#include <gtest/gtest.h>

#include <cmath>

#include "../model/reference.hpp"
#include "io/json_lines.hpp"
#include "launch.hpp"

namespace sl::test {
namespace {

using nlohmann::json;
using Words = std::vector<std::string>;

// The commands with what a model needs to be quick.
struct Chain {
  std::string model;
  Words run;                            // the whole command, to `run_folder`
  Words collect, train, answer, judge;  // options
  int64_t demanded = 8;                 // words
  int patience = 200;                   // seconds of a command
};

class EndToEnd : public testing::Test {
 protected:
  std::string at(const std::string& name) const { return scratch_ / name; }

  void complete(const Chain& chain) {
    chain_ = chain;
    run_and_collect();
    if (!HasFatalFailure()) train_and_export();
    if (!HasFatalFailure()) answer_and_judge();
    if (!HasFatalFailure()) choose_and_score();
  }

  // A command on so many ranks, with more options; whether it ended well.
  bool done(int ranks, Words words, const Words& more = {}) const {
    if (words.front() != SELFLENGTHEN_BINARY) words.insert(words.begin(), SELFLENGTHEN_BINARY);
    words.insert(words.end(), more.begin(), more.end());
    const Ended ended = run_job(ranks, words, chain_.patience);
    EXPECT_EQ(ended.status, 0) << words[1] << ": " << ended.err;
    return ended.status == 0;
  }

  // Every sample of a stage is accounted for, and what was accepted is in its table.
  static void expect_stage(const std::string& file) {
    const Table table = read_table(file);
    const json report = json::parse(table.attributes.at("report"));
    EXPECT_EQ(report["accepted"].get<int64_t>() + report["given_up"].get<int64_t>() +
                  report["abandoned"].get<int64_t>(),
              report["samples"])
        << file;
    EXPECT_EQ(report["accepted"], table.rows()) << file;
    EXPECT_GT(table.rows(), 0) << file;
  }

  void run_and_collect() {
    ASSERT_TRUE(done(2, chain_.run));
    const RunFolder folder(run_), collected = folder.collected();
    for (const char* stage : {"instructions", "initial", "extended"})
      expect_stage(folder.stage_file(1, stage));
    const Words collect = {"collect", "--run", run_, "--threads", "1"};
    ASSERT_TRUE(done(2, collect, chain_.collect));
    for (const char* stage : {"instructions", "initial"}) expect_stage(collected.stage_file(1, stage));
    EXPECT_EQ(rows_of_final(), read_table(folder.stage_file(1, "initial")).rows() +
                                   read_table(folder.stage_file(1, "extended")).rows() +
                                   read_table(collected.stage_file(1, "initial")).rows());
    // Given again, it does nothing new.
    const auto before = results_of(run_);
    const std::string metrics = read_bytes(collected.metrics());
    ASSERT_TRUE(done(2, collect, chain_.collect));
    EXPECT_TRUE(results_of(run_) == before);
    EXPECT_EQ(read_bytes(collected.metrics()), metrics);
  }
  int64_t rows_of_final() const {
    return read_table(RunFolder(run_).collected().stage_file(0, "final")).rows();
  }

  void train_and_export() {
    ASSERT_TRUE(done(1, {"export", "--run", run_, "--dataset", "final", "--output", at("final.jsonl")}));
    EXPECT_EQ(static_cast<int64_t>(read_json_lines(at("final.jsonl")).size()), rows_of_final());
    ASSERT_TRUE(done(2,
                     {"train", "--model", chain_.model, "--data", at("final.jsonl"), "--output", adapter_,
                      "--threads", "1"},
                     chain_.train));
    ASSERT_TRUE(
        done(1, {"export", "--model", chain_.model, "--adapter", adapter_, "--output", at("merged")}));
  }

  // The model with its adapter and the merged model; answers first, then the same command with a judge, which
  // keeps them.
  void answer_and_judge() {
    std::string queries;
    for (const std::string type : {"about", "range", "above", "below"}) {
      const std::string words = std::to_string(chain_.demanded) + " words";
      queries += json{{"language", "en"},
                      {"range", "2-4k"},
                      {"type", type},
                      {"constraint", type == "range" ? "4-" + words : words},
                      {"query", "Write of the sea."}}
                     .dump() +
                 "\n";
    }
    write_bytes(at("longen.jsonl"), queries);
    for (const std::string name : {"adapted", "merged"}) {
      Words words = {"evaluate", "longen",         "--data",           at("longen.jsonl"), "--threads",
                     "1",        "--rows",         at(name + ".rows"), "--output",         at(name + ".json"),
                     "--table",  at(name + ".txt")};
      words.insert(words.end(), chain_.answer.begin(), chain_.answer.end());
      name_model(words, name);
      ASSERT_TRUE(done(2, words));
      answered_[name] = read_json_lines(at(name + ".rows"));
      EXPECT_EQ(json::parse(read_bytes(at(name + ".json")))["counts"]["overall"], 4);
      ASSERT_TRUE(done(2, words, chain_.judge));
      const json report = json::parse(read_bytes(at(name + ".json")))["judge"];
      EXPECT_EQ(report["rows"], 4);
      EXPECT_EQ(report["judged"].get<int>() + report["not_judged"]["refused"].get<int>(), 4);
      const std::vector<JsonRow> judged = read_json_lines(at(name + ".rows"));
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(judged.at(i).value["response"], answered_[name].at(i).value["response"]);
        EXPECT_TRUE(judged[i].value.contains("judge"));
      }
      EXPECT_NE(read_bytes(at(name + ".txt")).find("quality"), std::string::npos);
    }
  }

  // The adapter and the merged model are the same model, which is not the one that it began from.
  void choose_and_score() {
    write_bytes(at("choices.jsonl"),
                "{\"question\":\"Where?\",\"choices\":[\"at sea\",\"on land\"],\"answer\":\"at sea\"}\n");
    std::string texts;
    for (const JsonRow& row : read_json_lines(at("final.jsonl")))
      texts += json{{"text", row.value["output"]}}.dump() + "\n";
    write_bytes(at("texts.jsonl"), texts);
    std::map<std::string, std::vector<double>> figures;
    for (const std::string name : {"base", "adapted", "merged"}) {
      Words choice = {"evaluate",  "choice", "--data", at("choices.jsonl"), "--rows", at("choices." + name),
                      "--threads", "1"};
      Words score = {"score",     "--input", at("texts.jsonl"), "--output", at("scores." + name),
                     "--threads", "1"};
      for (Words* words : {&choice, &score}) {
        name_model(*words, name);
        ASSERT_TRUE(done(2, *words));
      }
      for (const std::string file : {"choices.", "scores."}) {
        for (const JsonRow& row : read_json_lines(at(file + name))) {
          for (const json& value : row.value["logprobs"]) figures[name].push_back(value.get<double>());
        }
      }
    }
    ASSERT_GT(figures["adapted"].size(), 50U);
    ASSERT_EQ(figures["adapted"].size(), figures["merged"].size());
    double learnt = 0.0;
    for (size_t i = 0; i < figures["merged"].size(); ++i) {
      EXPECT_NEAR(figures["adapted"][i], figures["merged"][i], 1e-4);
      learnt = std::max(learnt, std::abs(figures["adapted"][i] - figures["base"].at(i)));
    }
    EXPECT_GT(learnt, 1e-2) << "training has changed nothing";
  }

  void name_model(Words& words, const std::string& name) const {
    words.insert(words.end(), {"--model", name == "merged" ? at("merged") : chain_.model});
    if (name == "adapted") words.insert(words.end(), {"--adapter", adapter_});
  }

  ScratchFolder scratch_;
  Chain chain_;
  std::string run_ = at("run"), adapter_ = at("adapter");
  std::map<std::string, std::vector<JsonRow>> answered_;
};

TEST_F(EndToEnd, RunToEvaluation) {
  complete({.model = tiny_model,
            .run = tiny_run(run_, {"--iterations", "1"}),
            .collect = {"--instructions",
                        "4",
                        "--batch",
                        "4",
                        "--kv-memory",
                        "64",
                        "--max-sequences",
                        "16",
                        "--control-least",
                        "2",
                        "--control-most",
                        "8",
                        "--control-unit",
                        "2",
                        "--control-coarse-unit",
                        "4",
                        "--control-attempts",
                        "1",
                        "--control-tokens",
                        "16"},
            .train = {"--epochs", "2", "--learning-rate", "1e-2", "--cutoff", "512"},
            .answer = {"--temperature", "0", "--max-tokens", "8", "--kv-memory", "64"},
            .judge = {"--judge", "--judge-attempts", "2", "--judge-tokens", "8"}});
  for (size_t i = 0; i < answered_["adapted"].size(); ++i)
    EXPECT_EQ(answered_["adapted"][i].value["response"], answered_["merged"].at(i).value["response"]);
}

// Responses end where a sentence or line begins, so nearly all of them end as accepted ones do.
TEST_F(EndToEnd, RunToEvaluationOnSmolLM2) {
  if (!std::filesystem::exists(smollm2_path())) GTEST_SKIP() << smollm2_path() << " is not there";
  Words run = {SELFLENGTHEN_BINARY,
               "run",
               "--config",
               source_dir + "/tests/run/small.cfg",
               "--prompts",
               source_dir + "/input/prompts",
               "--seeds",
               source_dir + "/input/seeds",
               "--model",
               smollm2_path(),
               "--out",
               run_};
  for (const char* begin : {" The", " It", " This", " In", " A", " As", " We", " With", " Their", "\n"})
    run.insert(run.end(), {"--stop", begin});
  complete({.model = smollm2_path(),
            .run = run,
            .collect = {"--instructions", "2", "--batch", "2", "--kv-memory", "128", "--control-least", "10",
                        "--control-most", "80", "--control-unit", "10", "--control-coarse-unit", "20",
                        "--control-attempts", "1", "--control-tokens", "32"},
            .train = {"--epochs", "1", "--learning-rate", "1e-3", "--cutoff", "256"},
            .answer = {"--max-tokens", "24", "--kv-memory", "128"},
            .judge = {"--judge", "--judge-attempts", "1", "--judge-tokens", "32"},
            .demanded = 20,
            .patience = 240});
}

}  // namespace
}  // namespace sl::test
