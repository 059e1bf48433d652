// Runs that are killed or asked to stop, and continued until they are done, give what an undisturbed run
// gives.
#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <set>
#include <thread>

#include "io/journal.hpp"
#include "launch.hpp"

namespace sl::test {
namespace {

using Clock = std::chrono::steady_clock;

// Finished samples in all journals: "file of the stage/sample" -> record.
std::map<std::string, std::string> journalled(const std::string& folder) {
  std::map<std::string, std::string> records;
  std::error_code none_yet;
  for (auto entry = std::filesystem::recursive_directory_iterator(folder, none_yet);
       entry != std::filesystem::recursive_directory_iterator(); ++entry) {
    if (entry->path().extension() != ".log") continue;
    const std::string journal = entry->path().string();
    const std::string stage = journal.substr(0, journal.find('.', journal.find("journal/")));
    for (const nlohmann::json& record : read_journal(journal).records) {
      const std::string key = stage + "/" + std::to_string(record.at("sample").get<int64_t>());
      EXPECT_TRUE(records.emplace(key, record.dump()).second) << key << " was generated twice";
    }
  }
  return records;
}

class Disturbed : public testing::Test {
 protected:
  void SetUp() override {
    const auto begin = Clock::now();
    const Ended ended = run_job(2, tiny_run(undisturbed_));
    seconds_ = std::chrono::duration<double>(Clock::now() - begin).count();
    ASSERT_EQ(ended.status, 0) << ended.err;
  }

  ScratchFolder scratch_;
  std::string undisturbed_ = scratch_ / "undisturbed";
  double seconds_ = 0.0;
};

TEST_F(Disturbed, KilledAtTenInstants) {
  std::mt19937 generator(20261124);
  std::uniform_real_distribution<double> within(0.0, 1.0);
  int instant = 0, with_journal = 0;
  double seconds = seconds_;
  for (int attempt = 0; instant < 10 && attempt < 30; ++attempt) {
    const std::string out = scratch_ / ("killed" + std::to_string(attempt));
    {
      Job job(2, tiny_run(out));
      std::this_thread::sleep_for(
          std::chrono::duration<double>(seconds * (instant + within(generator)) / 10.0));
      if (!job.running()) {  // the machine has become faster: too late
        seconds *= 0.8;
        continue;
      }
      job.kill_all();
      (void)job.wait();
    }
    const auto finished = journalled(out);
    with_journal += finished.empty() ? 0 : 1;
    // Another rank may live for a moment after the launcher: the lock tells.
    Ended again = run_job(2, tiny_run(out));
    ASSERT_EQ(again.status, 0) << "instant " << instant << ": " << again.err;
    EXPECT_EQ(state_of(out), "done");
    expect_same_results(out, undisturbed_);
    if (testing::Test::HasFailure()) FAIL() << "instant " << instant;
    std::filesystem::remove_all(out);
    ++instant;
  }
  EXPECT_EQ(instant, 10);
  EXPECT_GE(with_journal, 1);
}

// What the run in this folder has come to, once its files say so.
struct Phase {
  int64_t iteration;
  std::string name;  // of a stage with a journal, or of a role in training

  bool reached(const std::string& out) const {
    const RunFolder folder(out);
    const bool training = name == "generator" || name == "extender";
    return std::filesystem::exists(training ? folder.checkpoint(iteration, name)
                                            : folder.journal(iteration, name, 0));
  }
};

// Each folder is killed in every stage of both iterations, one start after the other: all ranks at once, or
// one alone, which the launcher must notice.
TEST_F(Disturbed, KilledInEveryStageAgainAndAgain) {
  std::mt19937 generator(20261128);
  constexpr int folders = 5, phases = 10;
  int kills = 0;
  for (int folder = 0; folder < folders; ++folder) {
    const std::string out = scratch_ / ("killed" + std::to_string(folder));
    for (const int64_t iteration : {1, 2}) {
      for (const char* name : {"instructions", "initial", "extended", "generator", "extender"}) {
        const Phase phase{iteration, name};
        // The launcher need not give the others time to end.
        Job job(2, tiny_run(out), {{"OMPI_MCA_odls_base_sigkill_timeout", "0"}});
        while (job.running() && !phase.reached(out))
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        std::this_thread::sleep_for(std::chrono::milliseconds(generator() % 50));
        const int victim = static_cast<int>(generator() % 3) - 1;
        const pid_t process = victim < 0 ? -1 : job.process_of(victim);
        if (!job.running()) break;  // too late: it is done
        if (process > 0) {
          ::kill(process, SIGKILL);
        } else {
          job.kill_all();
        }
        if (job.wait().status != 0) ++kills;  // else it was just done
        (void)journalled(out);                // no sample twice
      }
    }
    const Ended again = run_job(2, tiny_run(out));
    ASSERT_EQ(again.status, 0) << "folder " << folder << ": " << again.err;
    EXPECT_EQ(state_of(out), "done");
    expect_same_results(out, undisturbed_);
    if (testing::Test::HasFailure()) FAIL() << "folder " << folder;
  }
  RecordProperty("kills", kills);
  EXPECT_GE(kills, folders * phases * 3 / 4);
}

// Killed when samples of a stage are in the journals: they stand there unchanged while the run goes on, once.
TEST_F(Disturbed, FinishedSamplesAreKept) {
  const std::string out = scratch_ / "killed";
  Job job(2, tiny_run(out));
  std::map<std::string, std::string> finished;
  const auto some_responses = [&] {  // a stage that goes on for a while
    return finished.size() >= 3 && finished.begin()->first.find("/initial/") != std::string::npos;
  };
  while (job.running() && !some_responses()) finished = journalled(out);
  job.kill_all();
  (void)job.wait();
  finished = journalled(out);
  ASSERT_GE(finished.size(), 3U);
  Job again(2, tiny_run(out, {"--log-level", "warn"}));
  size_t most = 0;
  while (again.running()) {
    const auto now = journalled(out);
    most = std::max(most, now.size());
    for (const auto& [key, record] : now) {
      if (finished.contains(key)) {
        EXPECT_EQ(record, finished.at(key)) << key;
      }
    }
  }
  EXPECT_GE(most, finished.size());
  EXPECT_EQ(again.wait().status, 0);
  expect_same_results(out, undisturbed_);
}

TEST_F(Disturbed, AskedToStop) {
  for (const int number : {SIGTERM, SIGUSR1}) {
    const std::string out = scratch_ / ("stopped" + std::to_string(number));
    Job job(2, tiny_run(out));
    while (job.running() && journalled(out).empty())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (number == SIGTERM) {
      job.signal_ranks(number);  // mpirun that gets it ends with 1, whatever its ranks do
    } else {
      job.signal(number);
    }
    const Ended stopped = job.wait();
    EXPECT_EQ(stopped.status, 0) << stopped.err;
    EXPECT_EQ(state_of(out), "stopped");
    const Ended again =
        run_job(number == SIGTERM ? 2 : 1, tiny_run(out));  // also with another number of replicas
    ASSERT_EQ(again.status, 0) << again.err;
    EXPECT_EQ(state_of(out), "done");
    if (number == SIGTERM) {
      expect_same_results(out, undisturbed_);
    } else {
      for (const char* stage : {"initial", "extended", "sft_extender"}) {
        EXPECT_TRUE(read_table(RunFolder(out).stage_file(1, stage)).columns() ==
                    read_table(RunFolder(undisturbed_).stage_file(1, stage)).columns())
            << stage;
      }
    }
  }
}

}  // namespace
}  // namespace sl::test
