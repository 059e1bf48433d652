// Which jobs count as stalled, by looks at made-up ranks, a second apart.
#include "dist/stall.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <future>

#include "../io/scratch.hpp"
#include "dist/watchdog.hpp"

namespace sl::test {
namespace {

using Beats = std::vector<std::optional<Beat>>;

// Ranks that live, and are told what else they do.
class Ranks {
 public:
  explicit Ranks(int ranks) : beats_(static_cast<size_t>(ranks), Beat{.where = "stage 'extended'"}) {}
  Beat& operator[](int rank) { return *beats_[static_cast<size_t>(rank)]; }
  void works(int rank) { (*this)[rank].waits = false; }
  void waits(int rank) {
    (*this)[rank].waits = true;
    (*this)[rank].where = "in barrier of all ranks, stage 'extended'";
  }
  // A second passes for those that are named, and for the processes of all but the silent ones.
  const Beats& tick(const std::vector<int>& moving, const std::vector<int>& silent = {}) {
    for (auto& beat : beats_) ++beat->alive;
    for (const int rank : silent) --(*this)[rank].alive;
    for (const int rank : moving) ++(*this)[rank].progress;
    return beats_;
  }

 private:
  Beats beats_;
};

TEST(Stall, LongWorkWhileOthersWaitIsNone) {
  Ranks ranks(3);
  StallJudge judge(0, 3, 20.0);
  ranks.waits(0);
  ranks.waits(2);
  for (int second = 0; second < 1000; ++second) {
    ASSERT_EQ(judge.look(ranks.tick(second % 15 == 0 ? std::vector{1} : std::vector<int>{}), 1.0),
              std::nullopt)
        << second;
  }
}

TEST(Stall, ASilentProcessIsNamedAndWhoWaits) {
  Ranks ranks(3);
  StallJudge judge(0, 3, 20.0);
  (void)judge.look(ranks.tick({0, 1, 2}), 1.0);
  ranks.waits(0);
  std::optional<std::string> line;
  int second = 0;
  for (; !line && second < 100; ++second) line = judge.look(ranks.tick({2}, {1}), 1.0);
  ASSERT_TRUE(line);
  EXPECT_EQ(second, 20);
  EXPECT_EQ(
      *line,
      "the job has stalled: no sign of life for 20 s (stopped, or its machine is lost), last seen: rank 1: "
      "stage 'extended'; waiting: rank 0: in barrier of all ranks, stage 'extended'; it ends here, and the "
      "same command continues it");
}

TEST(Stall, ARankThatIsStuckIsNamed) {
  Ranks ranks(2);
  StallJudge judge(0, 2, 20.0);
  ranks.waits(0);
  std::optional<std::string> line;
  for (int second = 0; !line && second < 100; ++second) line = judge.look(ranks.tick({}), 1.0);
  ASSERT_TRUE(line);
  EXPECT_NE(line->find("no progress for 20 s, though waiting for nobody: rank 1: stage 'extended'"),
            std::string::npos)
      << *line;
}

TEST(Stall, AllWaitForEachOther) {
  Ranks ranks(12);
  StallJudge judge(0, 12, 20.0);
  for (int rank = 0; rank < 12; ++rank) ranks.waits(rank);
  ranks[0].where = "in broadcast of its replica, stage 'initial'";
  std::optional<std::string> line;
  for (int second = 0; !line && second < 100; ++second) line = judge.look(ranks.tick({}), 1.0);
  ASSERT_TRUE(line);
  EXPECT_NE(line->find("waited for each other; waiting: "), std::string::npos) << *line;
  EXPECT_NE(line->find("ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3 more: in barrier of all ranks"), std::string::npos)
      << *line;
  EXPECT_NE(line->find("rank 0: in broadcast of its replica"), std::string::npos) << *line;
}

// One line, not one a rank: the lowest that lives says it, another one only when that does not.
TEST(Stall, OneRankSaysIt) {
  Ranks ranks(3);
  StallJudge second_judge(1, 3, 20.0), third_judge(2, 3, 20.0);
  ranks.waits(1);
  ranks.waits(2);
  std::optional<int> second_said, third_said;
  for (int second = 0; second < 100; ++second) {
    const Beats& beats = ranks.tick({}, {0});
    if (second_judge.look(beats, 1.0) && !second_said) second_said = second;
    if (third_judge.look(beats, 1.0) && !third_said) third_said = second;
  }
  EXPECT_EQ(second_said, 19);
  EXPECT_EQ(third_said, 29);
}

// A job whose ranks were all stopped for an hour goes on; so does one whose rank has ended before the others.
TEST(Stall, TimeInWhichNobodyLookedDoesNotCount) {
  Ranks ranks(2);
  StallJudge judge(0, 2, 20.0);
  ranks.waits(0);
  for (int hour = 0; hour < 5; ++hour) {
    EXPECT_EQ(judge.look(ranks.tick({1}), 3600.0), std::nullopt);
    EXPECT_EQ(judge.look(ranks.tick({}), 1.0), std::nullopt);
  }
  ranks[1].left = true;
  for (int second = 0; second < 100; ++second) EXPECT_EQ(judge.look(ranks.tick({0}, {1}), 1.0), std::nullopt);
}

TEST(Stall, BeatsAsLines) {
  Activity activity;
  activity.stage("extended", 3);
  Beat beat = Beat::of(activity.state(), 7);
  EXPECT_EQ(beat.where, "stage 'extended' of iteration 3");
  EXPECT_FALSE(beat.waits);
  {
    const Waiting outer("barrier", "all ranks", activity);
    const Waiting inner("all_gather", "its replica", activity);
    beat = Beat::of(activity.state(), 8);
  }
  EXPECT_EQ(beat.where, "in all_gather of its replica, stage 'extended' of iteration 3");
  EXPECT_TRUE(beat.waits);
  EXPECT_EQ(beat.to_line(), "8 3 0 1 in all_gather of its replica, stage 'extended' of iteration 3\n");
  const auto read = Beat::from_line("8 3 0 1 in all_gather of its replica, stage 'extended' of iteration 3");
  ASSERT_TRUE(read);
  EXPECT_EQ(read->to_line(), beat.to_line());
  EXPECT_FALSE(Beat::from_line(""));
  EXPECT_EQ(activity.state().call, nullptr);
  EXPECT_EQ(activity.state().progress, 5);
}

// Two watchdogs over one file, one of whose ranks does nothing.
TEST(Stall, WatchdogsReadEachOther) {
  const ScratchFolder scratch;
  const std::string path = scratch / "beats";
  Watchdog::prepare(path, 2);
  Activity idle, waiting;
  idle.stage("training", 1);
  const Waiting collective("barrier", "all ranks", waiting);
  std::promise<std::string> said;
  {
    Watchdog first(
        path, 0, 2, 0.5, [&](const std::string& line) { said.set_value(line); }, waiting);
    Watchdog second(
        path, 1, 2, 0.5, [](const std::string&) {}, idle);
    auto line = said.get_future();
    ASSERT_EQ(line.wait_for(std::chrono::seconds(60)), std::future_status::ready);
    EXPECT_NE(line.get().find("rank 1: stage 'training' of iteration 1; waiting: rank 0: in barrier"),
              std::string::npos);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace sl::test
