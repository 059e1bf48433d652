// A rank that stops, or that hangs while its process lives, is noticed by the others: one line, exit code 1,
// and the same command finishes the run as if nothing had been.
#include <gtest/gtest.h>
#include <sys/ptrace.h>

#include "launch.hpp"

namespace sl::test {
namespace {

// Long enough that no busy machine keeps a rank from moving for so long.
constexpr const char* timeout = "5";

class Stalled : public testing::Test {
 protected:
  // Waits until the run has begun to fill the folder, the first iteration's `stage` at least.
  void wait_for(Job& job, const std::string& stage) const {
    const std::string journal = RunFolder(out_).journal(1, stage, 0);
    while (job.running() && !std::filesystem::exists(journal))
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ASSERT_TRUE(job.running());
  }
  void expect_stalled(const Ended& ended, const std::vector<std::string>& said) const {
    EXPECT_EQ(ended.status, 1) << ended.err;
    for (const std::string& words : said)
      EXPECT_NE(ended.err.find(words), std::string::npos) << words << " is not in " << ended.err;
    const size_t first = ended.err.find("the job has stalled");
    ASSERT_NE(first, std::string::npos) << ended.err;
    EXPECT_EQ(ended.err.find("the job has stalled", first + 1), std::string::npos)
        << "said twice: " << ended.err;
    EXPECT_EQ(state_of(out_), "failed");
  }
  void expect_continues() const {
    const std::string undisturbed = scratch_ / "undisturbed";
    ASSERT_EQ(run_job(2, tiny_run(undisturbed)).status, 0);
    const Ended again = run_job(2, tiny_run(out_));
    ASSERT_EQ(again.status, 0) << again.err;
    expect_same_results(out_, undisturbed);
  }

  ScratchFolder scratch_;
  std::string out_ = scratch_ / "run";
};

TEST_F(Stalled, AProcessThatIsStopped) {
  for (const int rank : {1, 0}) {
    std::filesystem::remove_all(out_);
    Job job(2, tiny_run(out_, {"--stall-timeout", timeout}));
    wait_for(job, "initial");
    ASSERT_GT(job.process_of(rank), 0);
    ::kill(job.process_of(rank), SIGSTOP);
    const std::string other = std::to_string(1 - rank);
    expect_stalled(job.wait(), {"[rank " + other + "]", "no sign of life for " + std::string(timeout) + " s",
                                "last seen: rank " + std::to_string(rank) + ": ", "stage '", "of iteration ",
                                "; waiting: rank " + other + ": in "});
  }
  expect_continues();
}

// Only the thread that works is held, as by a file system or a driver that does not answer.
TEST_F(Stalled, AThreadThatHangs) {
  Job job(2, tiny_run(out_, {"--stall-timeout", timeout}));
  wait_for(job, "initial");
  const pid_t worker = job.process_of(1);
  ASSERT_GT(worker, 0);
  if (::ptrace(PTRACE_SEIZE, worker, nullptr, nullptr) != 0) GTEST_SKIP() << "no thread can be held here";
  ASSERT_EQ(::ptrace(PTRACE_INTERRUPT, worker, nullptr, nullptr), 0);
  // What is held must be given free when it is killed, else its parent waits for it for ever.
  const Ended ended = job.wait([worker] { (void)::waitpid(worker, nullptr, WNOHANG | __WALL); });
  const bool in_a_call =
      ended.err.find("all ranks have waited") != std::string::npos;  // held inside a collective
  if (in_a_call) {
    expect_stalled(ended, {"rank 1", "; waiting: ", ": in "});
  } else {
    expect_stalled(ended,
                   {"no progress for " + std::string(timeout) + " s, though waiting for nobody: rank 1: ",
                    "; waiting: rank 0: in "});
  }
}

TEST_F(Stalled, TheWatchIsQuietInOrdinaryRuns) {
  for (const char* seconds : {"0", "60"}) {
    const Ended ended = run_job(2, tiny_run(out_, {"--stall-timeout", seconds}));
    EXPECT_EQ(ended.status, 0) << ended.err;
    EXPECT_FALSE(std::filesystem::exists(RunFolder(out_).beats()));
  }
  const Ended refused = run_job(2, tiny_run(out_, {"--stall-timeout", "-1"}));
  EXPECT_EQ(refused.status, 2);
  EXPECT_NE(refused.err.find("stall-timeout"), std::string::npos) << refused.err;
}

}  // namespace
}  // namespace sl::test
