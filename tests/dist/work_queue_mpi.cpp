#include "dist/work_queue.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>

#include "tests/mpi_main.hpp"

namespace sl {
namespace {

// The numbers of all ranks, in rank order.
std::vector<int64_t> of_all_ranks(Communicator& group, const std::vector<int64_t>& own) {
  const auto* bytes = reinterpret_cast<const char*>(own.data());
  std::vector<int64_t> all;
  for (const std::string& part : group.all_gather(std::string(bytes, own.size() * sizeof(int64_t)))) {
    const size_t before = all.size();
    all.resize(before + part.size() / sizeof(int64_t));
    std::memcpy(all.data() + before, part.data(), part.size());
  }
  return all;
}

std::vector<int64_t> numbers_to(int64_t n) {
  std::vector<int64_t> numbers(static_cast<size_t>(n));
  std::iota(numbers.begin(), numbers.end(), int64_t{0});
  return numbers;
}

TEST(SharedCounters, EveryValueIsHandedOutOnce) {
  auto world = test_session().world();
  SharedCounters counters(test_session(), 3);
  EXPECT_EQ(counters.read(1), 0);
  world->barrier();
  std::vector<int64_t> taken;
  for (int i = 0; i < 1000; ++i) {
    taken.push_back(counters.fetch_add(1, 1));
    counters.fetch_add(2, world->rank() + 1);
  }
  EXPECT_TRUE(std::is_sorted(taken.begin(), taken.end()));
  std::vector<int64_t> all = of_all_ranks(*world, taken);
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, numbers_to(1000 * world->size()));
  EXPECT_EQ(counters.read(0), 0);
  EXPECT_EQ(counters.read(1), 1000 * world->size());
  EXPECT_EQ(counters.read(2), 1000 * world->size() * (world->size() + 1) / 2);
}

TEST(SharedCounters, ResetStartsAllAgain) {
  auto world = test_session().world();
  SharedCounters counters(test_session(), 2);
  for (int time = 0; time < 3; ++time) {
    counters.fetch_add(0, int64_t{1} << 40);
    counters.fetch_add(1, -3);
    world->barrier();
    EXPECT_EQ(counters.read(0), (int64_t{1} << 40) * world->size());
    EXPECT_EQ(counters.read(1), -3 * world->size());
    counters.reset();
    EXPECT_EQ(counters.read(0), 0);
    EXPECT_EQ(counters.read(1), 0);
    world->barrier();
  }
  EXPECT_THROW(counters.read(2), BugError);
  EXPECT_THROW(counters.fetch_add(-1, 1), BugError);
}

TEST(SharedCounters, SeveralSetsLiveSideBySide) {
  SharedCounters first(test_session(), 1), second(test_session(), 1);
  auto world = test_session().world();
  first.fetch_add(0, 1);
  second.fetch_add(0, 2);
  world->barrier();
  EXPECT_EQ(first.read(0), world->size());
  EXPECT_EQ(second.read(0), 2 * world->size());
  world->barrier();
}

// The owner of the counters makes no MPI call for two seconds. If the others needed its help they could not
// have done a thousand operations by its first call after that.
TEST(SharedCounters, OthersDoNotWaitForABusyRankZero) {
  auto world = test_session().world();
  SharedCounters counters(test_session(), 2);
  world->barrier();
  if (world->rank() == 0) {
    std::this_thread::sleep_for(std::chrono::seconds(2));
    EXPECT_EQ(counters.read(1), world->size() - 1);
    EXPECT_EQ(counters.read(0), 1000 * (world->size() - 1));
  } else {
    for (int i = 0; i < 1000; ++i) counters.fetch_add(0, 1);
    counters.fetch_add(1, 1);
  }
  world->barrier();
}

TEST(WorkQueue, EverySampleGoesToOneReplica) {
  const MpiSession& session = test_session();
  std::vector<int64_t> pending;
  for (int64_t i = 0; i < 501; ++i) pending.push_back(3 * i + 7);
  SharedCounters counters(session, 2);
  for (int tp = 1; tp <= session.size(); ++tp) {
    if (session.size() % tp != 0) continue;
    const Groups groups = make_groups(session, grid_of(session.size(), tp));
    counters.reset();
    WorkQueue queue(counters, 1, *groups.tensor, pending);
    std::vector<int64_t> mine;
    for (int64_t at_most = 1;; at_most = at_most % 7 + 1) {
      const std::vector<int64_t> chunk = queue.next(at_most);
      if (chunk.empty()) break;
      EXPECT_LE(chunk.size(), static_cast<size_t>(at_most));
      mine.insert(mine.end(), chunk.begin(), chunk.end());
    }
    EXPECT_TRUE(queue.next(1).empty());
    EXPECT_TRUE(std::is_sorted(mine.begin(), mine.end()));
    // The ranks of a replica were handed the same; the replicas together everything once.
    std::vector<int64_t> of_replica;
    for (int i = 0; i < tp; ++i) of_replica.insert(of_replica.end(), mine.begin(), mine.end());
    EXPECT_EQ(of_all_ranks(*groups.tensor, mine), of_replica);
    std::vector<int64_t> all = of_all_ranks(*groups.data, mine);
    std::sort(all.begin(), all.end());
    EXPECT_EQ(all, pending);
  }
}

TEST(WorkQueue, NothingPending) {
  SharedCounters counters(test_session(), 1);
  auto world = test_session().world();
  WorkQueue queue(counters, 0, *world, {});
  EXPECT_TRUE(queue.next(8).empty());
}

}  // namespace
}  // namespace sl
