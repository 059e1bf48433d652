// What one rank alone uses, in a process that never starts MPI.
#include <gtest/gtest.h>

#include "core/buffer.hpp"
#include "dist/communicator_mpi.hpp"
#include "dist/work_queue.hpp"

namespace sl {
namespace {

TEST(LocalCommunicator, KeepsWhatOneRankHas) {
  auto alone = make_local_communicator();
  EXPECT_EQ(alone->rank(), 0);
  EXPECT_EQ(alone->size(), 1);
  std::vector<double> values{1.5, -2.0};
  alone->all_reduce_sum(values);
  EXPECT_EQ(values, (std::vector<double>{1.5, -2.0}));
  std::vector<int64_t> numbers{-7};
  alone->all_reduce_max(numbers);
  EXPECT_EQ(numbers, std::vector<int64_t>{-7});
  std::vector<std::byte> bytes{std::byte{9}};
  alone->broadcast(bytes, 0);
  EXPECT_EQ(bytes[0], std::byte{9});
  EXPECT_THROW(alone->broadcast(bytes, 1), BugError);
  EXPECT_EQ(alone->all_gather("text"), std::vector<std::string>{"text"});
  EXPECT_NO_THROW(alone->barrier());
}

TEST(LocalCommunicator, TensorsOnBothHostDevices) {
  auto alone = make_local_communicator();
  for (const Device device : {Device::cpu, Device::debug}) {
    Arena arena(device, 1 << 16, "test");
    const Tensor part = arena.take(DType::f32, {3});
    const Tensor out = arena.take(DType::f32, {1, 3});
    const std::vector<float> values{1.0F, -2.0F, 3.0F};
    upload<float>(part, values);
    alone->all_reduce_sum(part);
    alone->all_reduce_max(part);
    alone->all_gather(part, out);
    EXPECT_EQ(download<float>(part), values);
    EXPECT_EQ(download<float>(out), values);
    alone->all_gather(out, out);
    EXPECT_EQ(download<float>(out), values);
    const Tensor matrix = arena.take(DType::f32, {2, 4});
    EXPECT_THROW(alone->all_reduce_sum(matrix.columns(0, 2)), BugError);
    EXPECT_THROW(alone->all_reduce_max(arena.take(DType::i32, {2})), BugError);
    EXPECT_THROW(alone->all_gather(part, matrix), BugError);
  }
}

TEST(LocalGroups, OneReplicaOfOneRank) {
  const Groups groups = make_local_groups();
  EXPECT_EQ(groups.grid.ranks(), 1);
  EXPECT_EQ(groups.place, (Place{0, 0}));
  for (const Communicator* group : {groups.world.get(), groups.tensor.get(), groups.data.get()}) {
    EXPECT_EQ(group->size(), 1);
  }
}

TEST(LocalCounters, CountWithoutMpi) {
  SharedCounters counters(2);
  EXPECT_EQ(counters.fetch_add(1, 5), 0);
  EXPECT_EQ(counters.fetch_add(1, -2), 5);
  EXPECT_EQ(counters.read(1), 3);
  EXPECT_EQ(counters.read(0), 0);
  counters.reset();
  EXPECT_EQ(counters.read(1), 0);
  EXPECT_THROW(counters.read(2), BugError);
  EXPECT_THROW(counters.fetch_add(-1, 1), BugError);
}

TEST(LocalQueue, HandsOutEverySampleOnceInOrder) {
  SharedCounters counters(2);
  auto alone = make_local_communicator();
  WorkQueue queue(counters, 1, *alone, {4, 8, 15, 16, 23});
  EXPECT_EQ(queue.next(2), (std::vector<int64_t>{4, 8}));
  EXPECT_THROW(queue.next(0), BugError);
  EXPECT_EQ(queue.next(2), (std::vector<int64_t>{15, 16}));
  EXPECT_EQ(queue.next(2), std::vector<int64_t>{23});
  EXPECT_TRUE(queue.next(2).empty());
  EXPECT_TRUE(queue.next(2).empty());
  EXPECT_EQ(counters.read(0), 0);
}

}  // namespace
}  // namespace sl
