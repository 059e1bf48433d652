// The collection after a run: to its end, killed and continued, refused; and what it gives is trained on.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>

#include "launch.hpp"
#include "text/rules.hpp"

namespace sl::test {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

std::vector<std::string> tiny_collect(const std::string& run, const std::vector<std::string>& more = {}) {
  std::map<std::string, std::string> options = {{"--run", run},
                                                {"--instructions", "6"},
                                                {"--batch", "4"},
                                                {"--kv-memory", "64"},
                                                {"--max-sequences", "16"},
                                                {"--threads", "1"},
                                                {"--control-least", "2"},
                                                {"--control-most", "8"},
                                                {"--control-unit", "2"},
                                                {"--control-coarse-unit", "4"},
                                                {"--control-attempts", "2"},
                                                {"--control-kept", "0"},
                                                {"--control-tokens", "16"}};
  for (size_t i = 0; i + 1 < more.size(); i += 2) options[more[i]] = more[i + 1];
  std::vector<std::string> words = {SELFLENGTHEN_BINARY, "collect"};
  for (const auto& [name, value] : options) words.insert(words.end(), {name, value});
  return words;
}

// A finished run of one iteration, which each test copies.
class Collect : public testing::Test {
 protected:
  void SetUp() override {
    const Ended ended = run_job(2, tiny_run(finished_, {"--iterations", "1"}));
    ASSERT_EQ(ended.status, 0) << ended.err;
  }
  std::string copy_of_run(const std::string& name) {
    fs::copy(finished_, scratch_ / name, fs::copy_options::recursive);
    return scratch_ / name;
  }

  ScratchFolder scratch_;
  std::string finished_ = scratch_ / "finished";
};

TEST_F(Collect, GivesTheFinalSetThatTrainReads) {
  const std::string run = copy_of_run("run");
  const auto of_the_run = results_of(run);
  const Ended ended = run_job(2, tiny_collect(run));
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_NE(ended.out.find("collected/batch_02/initial"), std::string::npos) << ended.out;
  EXPECT_NE(ended.out.find("demands: about"), std::string::npos) << ended.out;
  const RunFolder folder(run), collected = folder.collected();
  EXPECT_EQ(state_of(run), "done");
  EXPECT_EQ(state_of(collected.path()), "done");
  for (const auto& [name, bytes] : of_the_run) EXPECT_EQ(results_of(run).at(name), bytes) << name;

  EXPECT_LE(read_table(collected.stage_file(1, "instructions")).rows(), 4);
  EXPECT_LE(read_table(collected.stage_file(2, "instructions")).rows(), 2);
  std::map<std::string, Table> sources;
  sources.emplace("iter_01/initial", read_table(folder.stage_file(1, "initial")));
  sources.emplace("iter_01/extended", read_table(folder.stage_file(1, "extended")));
  sources.emplace("collected/batch_01/initial", read_table(collected.stage_file(1, "initial")));
  sources.emplace("collected/batch_02/initial", read_table(collected.stage_file(2, "initial")));
  int64_t all = 0;
  for (const auto& [name, table] : sources) all += table.rows();

  const Table final = read_table(collected.stage_file(0, "final"));
  ASSERT_EQ(final.rows(), all);
  int64_t demands = 0;
  for (size_t i = 0; i < static_cast<size_t>(final.rows()); ++i) {
    const Table& source = sources.at(final.texts("source")[i]);
    const auto row = static_cast<size_t>(final.integers("source_row")[i]);
    const std::string& response = final.texts("response")[i];
    EXPECT_EQ(response, source.texts("response")[row]);
    EXPECT_EQ(final.integers("words")[i], count_words(response));
    EXPECT_EQ(final.texts("language")[i], language_name(detect_language(response)));
    const std::string& original = final.texts("original_instruction")[i];
    EXPECT_EQ(original, source.texts("instruction")[row]);
    const bool demanded = count_words(response) >= 2 && count_words(response) < 8;
    EXPECT_EQ(final.texts("demand")[i] != "none", demanded) << response;
    EXPECT_EQ(final.texts("instruction")[i] != original, demanded);
    demands += demanded ? 1 : 0;
  }
  EXPECT_GT(demands, 0);

  // As each of them is done the second time.
  const auto before = results_of(run);
  const Ended again = run_job(2, tiny_collect(run));
  EXPECT_EQ(again.status, 0) << again.err;
  EXPECT_EQ(again.out, ended.out);
  EXPECT_TRUE(results_of(run) == before);
  for (const auto& [name, bytes] : before) {
    EXPECT_EQ(name.find(".partial"), std::string::npos) << name;
    EXPECT_EQ(name.find("journal/"), std::string::npos) << name;
  }

  const std::string rows = scratch_ / "final.jsonl", adapter = scratch_ / "adapter";
  ASSERT_EQ(run_job(1, {SELFLENGTHEN_BINARY, "export", "--run", run, "--dataset", "final", "--output", rows})
                .status,
            0);
  const auto row = nlohmann::json::parse(read_bytes(rows).substr(0, read_bytes(rows).find('\n')));
  EXPECT_EQ(row.at("instruction"), final.texts("instruction")[0]);
  EXPECT_EQ(row.at("output"), final.texts("response")[0]);
  const Ended trained =
      run_job(2, {SELFLENGTHEN_BINARY, "train", "--model", tiny_model, "--data", rows, "--output", adapter,
                  "--epochs", "1", "--batch-sequences", "16", "--cutoff", "512"});
  EXPECT_EQ(trained.status, 0) << trained.err;
  EXPECT_TRUE(fs::exists(adapter + "/adapter_config.json"));
  EXPECT_EQ(run_job(1, {SELFLENGTHEN_BINARY, "inspect", "--verify", run}).status, 0);
}

// A random model names a number by chance, given many attempts.
TEST_F(Collect, TakesWhatTheModelWeaves) {
  const std::string run = copy_of_run("run");
  const Ended ended = run_job(2, tiny_collect(run, {"--control-attempts", "200"}));
  ASSERT_EQ(ended.status, 0) << ended.err;
  const Table final = read_table(RunFolder(run).collected().stage_file(0, "final"));
  int64_t woven = 0;
  for (size_t i = 0; i < static_cast<size_t>(final.rows()); ++i) {
    if (final.integers("woven")[i] == 0) continue;
    ++woven;
    const std::string& instruction = final.texts("instruction")[i];
    for (const int64_t number : {final.integers("low")[i], final.integers("high")[i]}) {
      if (number > 0) {
        EXPECT_NE(instruction.find(std::to_string(number)), std::string::npos) << instruction;
      }
    }
    EXPECT_EQ(instruction.find("Write"), std::string::npos) << "appended as well: " << instruction;
  }
  EXPECT_GT(woven, 0);
}

// The draws of the collection are none of the run's.
TEST_F(Collect, AsksForOtherInstructions) {
  const std::string run = copy_of_run("run");
  ASSERT_EQ(run_job(1, tiny_collect(run, {"--instructions", "8", "--batch", "8"})).status, 0);
  const auto own = read_table(RunFolder(run).stage_file(1, "instructions")).texts("instruction");
  const auto further =
      read_table(RunFolder(run).collected().stage_file(1, "instructions")).texts("instruction");
  for (const std::string& instruction : further)
    EXPECT_EQ(std::count(own.begin(), own.end(), instruction), 0) << instruction;
}

// What the run has is a final set as well.
TEST_F(Collect, ABatchMayBeEmpty) {
  const std::string run = copy_of_run("run");
  const Ended ended = run_job(2, tiny_collect(run, {"--instruction-min-words", "400"}));
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_NE(ended.err.find("batch 2: no instruction was accepted"), std::string::npos) << ended.err;
  const RunFolder collected = RunFolder(run).collected();
  EXPECT_EQ(read_table(collected.stage_file(1, "initial")).rows(), 0);
  EXPECT_GT(read_table(collected.stage_file(0, "final")).rows(), 0);
}

TEST_F(Collect, KilledAndContinuedGivesTheSame) {
  const std::string undisturbed = copy_of_run("undisturbed");
  const auto begin = Clock::now();
  ASSERT_EQ(run_job(2, tiny_collect(undisturbed)).status, 0);
  double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  std::mt19937 generator(20261201);
  std::uniform_real_distribution<double> within(0.0, 1.0);
  int instant = 0;
  constexpr int instants = 6;
  for (int attempt = 0; instant < instants && attempt < 20; ++attempt) {
    const std::string run = copy_of_run("killed" + std::to_string(attempt));
    {
      Job job(2, tiny_collect(run));
      std::this_thread::sleep_for(
          std::chrono::duration<double>(seconds * (instant + within(generator)) / instants));
      if (!job.running()) {  // too late: the machine has become faster
        seconds *= 0.8;
        continue;
      }
      job.kill_all();
      (void)job.wait();
    }
    const Ended again = run_job(2, tiny_collect(run));
    ASSERT_EQ(again.status, 0) << "instant " << instant << ": " << again.err;
    expect_same_results(RunFolder(run).collected().path(), RunFolder(undisturbed).collected().path());
    if (testing::Test::HasFailure()) FAIL() << "instant " << instant;
    ++instant;
  }
  EXPECT_EQ(instant, instants);
}

// Killed while each of its stages runs, one start after the other; and on another grid at the end.
TEST_F(Collect, KilledInEveryStage) {
  const std::string undisturbed = copy_of_run("undisturbed"), run = copy_of_run("killed");
  ASSERT_EQ(run_job(2, tiny_collect(undisturbed)).status, 0);
  const RunFolder collected = RunFolder(run).collected();
  struct Phase {
    int64_t batch;
    const char* stage;
  };
  int kills = 0;
  for (const Phase phase : {Phase{1, "instructions"}, Phase{1, "initial"}, Phase{2, "instructions"},
                            Phase{2, "initial"}, Phase{0, "length_control"}}) {
    Job job(2, tiny_collect(run));
    while (job.running() && !fs::exists(collected.journal(phase.batch, phase.stage, 0)))
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (!job.running()) break;
    job.kill_all();
    kills += job.wait().status != 0 ? 1 : 0;
  }
  EXPECT_GE(kills, 4);
  const Ended again = run_job(1, tiny_collect(run));
  ASSERT_EQ(again.status, 0) << again.err;
  expect_same_results(collected.path(), RunFolder(undisturbed).collected().path());
}

// More instructions than it was begun with: as if it had been begun with them.
TEST_F(Collect, GoesOnWithMoreInstructions) {
  const std::string at_once = copy_of_run("at_once"), raised = copy_of_run("raised");
  ASSERT_EQ(run_job(2, tiny_collect(at_once, {"--instructions", "8"})).status, 0);
  ASSERT_EQ(run_job(2, tiny_collect(raised, {"--instructions", "4"})).status, 0);
  const RunFolder collected = RunFolder(raised).collected();
  const int64_t before = read_table(collected.stage_file(0, "final")).rows();
  const Ended ended = run_job(2, tiny_collect(raised, {"--instructions", "8"}));
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_GT(read_table(collected.stage_file(0, "final")).rows(), before);
  expect_same_results(collected.path(), RunFolder(at_once).collected().path());
  EXPECT_EQ(run_job(2, tiny_collect(raised, {"--instructions", "8"})).status, 0);

  const Ended fewer = run_job(2, tiny_collect(raised, {"--instructions", "4"}));
  EXPECT_EQ(fewer.status, 2);
  EXPECT_NE(fewer.err.find("--instructions 8, not 4"), std::string::npos) << fewer.err;
  const std::string odd = copy_of_run("odd");
  ASSERT_EQ(run_job(2, tiny_collect(odd, {"--instructions", "6"})).status, 0);
  const Ended more = run_job(2, tiny_collect(odd, {"--instructions", "8"}));
  EXPECT_EQ(more.status, 2);
  EXPECT_NE(more.err.find("cannot grow"), std::string::npos) << more.err;
}

TEST_F(Collect, AskedToStop) {
  const std::string run = copy_of_run("run");
  const RunFolder collected = RunFolder(run).collected();
  Job job(2, tiny_collect(run));
  while (job.running() && !fs::exists(collected.journal(1, "instructions", 0)))
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  job.signal_ranks(SIGUSR1);
  const Ended stopped = job.wait();
  EXPECT_EQ(stopped.status, 0) << stopped.err;
  EXPECT_EQ(state_of(collected.path()), "stopped");
  EXPECT_EQ(state_of(run), "done");
  EXPECT_EQ(run_job(2, tiny_collect(run)).status, 0);
  EXPECT_EQ(state_of(collected.path()), "done");
}

TEST_F(Collect, BadInput) {
  const auto refused = [&](const std::string& run, const std::vector<std::string>& said,
                           const std::vector<std::string>& more = {}) {
    const Ended ended = run_job(2, tiny_collect(run, more));
    EXPECT_EQ(ended.status, 2) << ended.err;
    for (const std::string& words : said) EXPECT_NE(ended.err.find(words), std::string::npos) << ended.err;
  };
  refused(scratch_ / "nowhere", {"nowhere", "is not the folder of a run"});
  const std::string run = copy_of_run("run");
  refused(run, {"another model"}, {"--model", source_dir + "/tests/reference/models/qwen2"});
  refused(run, {"--control-most", "above"}, {"--control-most", "2"});
  refused(run, {"add up to"}, {"--control-about", "0.9"});

  const std::string unfinished = copy_of_run("unfinished");
  fs::remove_all(unfinished + "/iter_01/extender");
  refused(unfinished, {"iter_01", "missing"});
  RunFolder(unfinished).set_state(RunState::stopped, "");
  refused(unfinished, {"no iteration of this run is finished"});

  const std::string without = copy_of_run("without");
  fs::remove_all(without + "/iter_01/generator");
  refused(without, {"iter_01/generator/adapter_config.json", "is missing"});

  ASSERT_EQ(run_job(2, tiny_collect(run)).status, 0);
  refused(run, {"was begun with --batch 4, not 3"}, {"--batch", "3"});
}

}  // namespace
}  // namespace sl::test
