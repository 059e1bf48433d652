// The run folder: names, state, metrics, journals of all replicas, and the lock.
#include "io/run_folder.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <optional>

#include "core/error.hpp"
#include "io/checksum.hpp"
#include "io/durable.hpp"
#include "io/journal.hpp"
#include "io/json_lines.hpp"
#include "scratch.hpp"

namespace sl {
namespace {

using nlohmann::json;
using test::message_of;
using test::ScratchFolder;
using testing::AllOf;
using testing::HasSubstr;

class RunFolderTest : public testing::Test {
 protected:
  ScratchFolder scratch_;
  RunFolder folder_{scratch_ / "run"};
};

TEST_F(RunFolderTest, NamesAreTheDocumentedOnes) {
  const RunFolder run("out");
  EXPECT_EQ(run.run_json(), "out/run.json");
  EXPECT_EQ(run.metrics(), "out/metrics.jsonl");
  EXPECT_EQ(run.stage_file(1, "sft_generator"), "out/iter_01/sft_generator.h5");
  EXPECT_EQ(run.adapter(12, "extender"), "out/iter_12/extender");
  EXPECT_EQ(run.checkpoint(3, "generator"), "out/iter_03/checkpoint/generator.h5");
  EXPECT_EQ(run.journal(1, "initial", 7), "out/iter_01/journal/initial.00007.log");
}

TEST_F(RunFolderTest, RunJsonHoldsTheState) {
  const RunLock lock(folder_);
  EXPECT_TRUE(folder_.read_run().is_null());
  folder_.set_state(RunState::failed, "too early");
  EXPECT_TRUE(folder_.read_run().is_null());  // nothing had begun
  folder_.write_run({{"seed", 7}, {"state", "running"}, {"why", ""}});
  folder_.set_state(RunState::stopped, "signal 15");
  EXPECT_EQ(folder_.read_run(), (json{{"seed", 7}, {"state", "stopped"}, {"why", "signal 15"}}));
  EXPECT_EQ(state_name(RunState::done), "done");
  {
    const test::FileSizeLimit limit(10);
    EXPECT_THROW(folder_.set_state(RunState::done, ""), SystemError);
  }
  EXPECT_EQ(folder_.read_run()["state"], "stopped");
  EXPECT_FALSE(std::filesystem::exists(folder_.run_json() + ".partial"));
  test::write_bytes(folder_.run_json(), "{\"seed\": 7");
  EXPECT_THAT(message_of<InputError>([&] { folder_.read_run(); }), HasSubstr("run.json"));
  test::write_bytes(folder_.run_json(),
                    "{\"a\":" + std::string(1000000, '[') + std::string(1000000, ']') + "}");
  EXPECT_THAT(message_of<InputError>([&] { folder_.read_run(); }), HasSubstr("damaged"));
  std::filesystem::remove(folder_.run_json());
  std::filesystem::create_directory(folder_.run_json());
  EXPECT_THROW(folder_.read_run(), SystemError);  // there, but unreadable: not a new run
}

TEST_F(RunFolderTest, MetricsAreLinesAlsoAfterATornOne) {
  const RunLock lock(folder_);
  folder_.append_metrics({{"step", 1}});
  folder_.append_metrics({{"step", 2}});
  test::write_bytes(folder_.metrics(), test::read_bytes(folder_.metrics()) + "{\"step\": 3, \"lo");
  folder_.append_metrics({{"step", 3}});
  const auto rows = read_json_lines(folder_.metrics());
  ASSERT_EQ(rows.size(), 3U);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(rows[static_cast<size_t>(i)].value, sealed({{"step", i + 1}}));
}

TEST_F(RunFolderTest, JournalsOfAllReplicasOfOneStageAreRead) {
  folder_.create_iteration(2);
  folder_.create_iteration(2);  // again does no harm
  for (int replica : {1, 0}) {
    Journal journal(folder_.journal(2, "initial", replica));
    journal.append({{"replica", replica}});
  }
  Journal(folder_.journal(2, "initial_other", 0)).append({{"replica", 99}});
  test::write_bytes(folder_.journal(2, "initial", 0),
                    "00000000 {\"bad\":1}\n" + test::read_bytes(folder_.journal(2, "initial", 0)));
  EXPECT_EQ(folder_.read_journals(2, "initial"), (std::vector<json>{{{"replica", 0}}, {{"replica", 1}}}));
  EXPECT_TRUE(folder_.read_journals(2, "extended").empty());
  EXPECT_TRUE(folder_.read_journals(3, "initial").empty());
  folder_.remove_journals(2, "initial");
  EXPECT_TRUE(folder_.read_journals(2, "initial").empty());
  EXPECT_EQ(folder_.read_journals(2, "initial_other").size(), 1U);
}

TEST_F(RunFolderTest, OnlyOneRunTakesAFolder) {
  {
    const RunLock lock(folder_);
    EXPECT_THAT(message_of<InputError>([&] { RunLock second(folder_); }),
                AllOf(HasSubstr(folder_.path()), HasSubstr("another run")));
    const RunFolder other(scratch_ / "other");
    EXPECT_NO_THROW(RunLock(RunFolder(other)));
  }
  EXPECT_NO_THROW(RunLock{folder_});
}

TEST_F(RunFolderTest, AKilledProcessGivesTheLockBack) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const RunLock lock(folder_);
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_THROW(RunLock{folder_}, InputError);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_NO_THROW(RunLock{folder_});
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(RunFolderTest, AFileInThePlaceOfTheFolderIsNamed) {
  test::write_bytes(scratch_ / "run", "a file");
  EXPECT_THAT(message_of<InputError>([&] { RunLock lock(folder_); }), HasSubstr(folder_.path()));
  EXPECT_THROW(folder_.create_iteration(1), SystemError);
}

TEST(WriteAtomically, ReplacesTheWholeFileOrNothing) {
  const ScratchFolder folder;
  const std::string path = folder / "a.txt";
  write_atomically(path, "first");
  write_atomically(path, "");
  EXPECT_EQ(test::read_bytes(path), "");
  write_atomically(path, "second");
  {
    const test::FileSizeLimit limit(3);
    EXPECT_THROW(write_atomically(path, "third"), SystemError);
  }
  EXPECT_EQ(test::read_bytes(path), "second");
  EXPECT_EQ(folder.names(), std::set<std::string>{"a.txt"});
  std::filesystem::create_directory(folder / "d");
  EXPECT_THROW(write_atomically(folder / "d", "x"), SystemError);  // the rename is refused
  EXPECT_EQ(folder.names(), (std::set<std::string>{"a.txt", "d"}));
}

}  // namespace
}  // namespace sl
