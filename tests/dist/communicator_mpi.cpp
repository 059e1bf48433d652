#include "dist/communicator_mpi.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <numeric>
#include <thread>

#include "core/buffer.hpp"
#include "tests/mpi_main.hpp"
#include "tests/support.hpp"

namespace sl {
namespace {

using test::random_floats;
using test::small_integers;

// A communicator that must cut messages: 5 elements a piece.
std::unique_ptr<Communicator> world_in_pieces() {
  MPI_Comm copy = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(test_session().raw(), &copy), "MPI_Comm_dup");
  return std::make_unique<MpiCommunicator>(copy, 5);
}

std::vector<std::unique_ptr<Communicator>> both_worlds() {
  std::vector<std::unique_ptr<Communicator>> worlds;
  worlds.push_back(test_session().world());
  worlds.push_back(world_in_pieces());
  return worlds;
}

// What `values_of(rank)` sums to, in double.
std::vector<double> sum_over_ranks(int size, const std::function<std::vector<float>(int)>& values_of) {
  std::vector<double> sum(values_of(0).size(), 0.0);
  for (int rank = 0; rank < size; ++rank) {
    const std::vector<float> values = values_of(rank);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(values[i]);
  }
  return sum;
}

TEST(Session, KnowsItsPlaceInTheJobAndOnTheNode) {
  const MpiSession& session = test_session();
  auto world = session.world();
  EXPECT_EQ(world->rank(), session.rank());
  EXPECT_EQ(world->size(), session.size());
  EXPECT_GE(session.rank(), 0);
  EXPECT_LT(session.rank(), session.size());
  EXPECT_GE(session.node_rank(), 0);
  EXPECT_LT(session.node_rank(), session.node_size());
  EXPECT_LE(session.node_size(), session.size());
  // Somebody is the first of a node, and the ranks of the nodes add up.
  double firsts = session.node_rank() == 0 ? session.node_size() : 0.0;
  world->all_reduce_sum(std::span(&firsts, 1));
  EXPECT_EQ(firsts, session.size());
}

TEST(Session, OneAProcess) { EXPECT_THROW(MpiSession{}, BugError); }

TEST(Session, RawCommunicatorsServeOtherLibraries) {
  int size = 0;
  check_mpi(MPI_Comm_size(self_comm(), &size), "MPI_Comm_size");
  EXPECT_EQ(size, 1);
  auto world = test_session().world();
  const auto* mpi = dynamic_cast<const MpiCommunicator*>(world.get());
  ASSERT_NE(mpi, nullptr);
  check_mpi(MPI_Comm_size(mpi->raw(), &size), "MPI_Comm_size");
  EXPECT_EQ(size, test_session().size());
  EXPECT_NE(mpi->raw(), test_session().raw());  // messages of the two cannot meet
}

TEST(Session, FailedCallsBecomeExceptionsThatNameThem) {
  int value = 0;
  try {
    check_mpi(MPI_Bcast(&value, 1, MPI_INT, test_session().size(), test_session().raw()), "MPI_Bcast");
    FAIL() << "a root outside the group was accepted";
  } catch (const LibraryError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("MPI"));
    EXPECT_THAT(error.what(), testing::HasSubstr("MPI_Bcast"));
    EXPECT_THAT(error.what(), testing::HasSubstr("communicator_mpi.cpp"));
  }
}

TEST(Session, SplitOrdersByKeyThenRank) {
  const MpiSession& session = test_session();
  auto reversed = session.split(0, session.size() - session.rank());
  EXPECT_EQ(reversed->rank(), session.size() - 1 - session.rank());
  EXPECT_EQ(reversed->size(), session.size());
  auto parity = session.split(session.rank() % 2);
  EXPECT_EQ(parity->rank(), session.rank() / 2);
  EXPECT_EQ(parity->size(), (session.size() + 1 - session.rank() % 2) / 2);
  EXPECT_THROW(session.split(-1), BugError);
}

class OnDevice : public testing::TestWithParam<Device> {
 protected:
  Tensor tensor(DType dtype, std::initializer_list<int64_t> shape) { return arena_.take(dtype, shape); }
  Tensor of(const std::vector<float>& values) {
    Tensor t = tensor(DType::f32, {static_cast<int64_t>(values.size())});
    upload<float>(t, values);
    return t;
  }

  std::unique_ptr<Communicator> world_ = test_session().world();
  int rank_ = world_->rank(), size_ = world_->size();

 private:
  Arena arena_{GetParam(), int64_t{64} << 20, "test"};
};

INSTANTIATE_TEST_SUITE_P(Devices, OnDevice, testing::Values(Device::cpu, Device::debug),
                         [](const auto& device) { return std::string(name_of(device.param)); });

// From one element to sizes for which MPI turns to other algorithms; 576 is SmolLM2's width.
constexpr int64_t sizes[] = {0, 1, 3, 17, 576, 32 * 576, 300001, 1200001};

TEST_P(OnDevice, AllReduceSumOfSmallIntegersIsExact) {
  for (const int64_t n : sizes) {
    const auto values_of = [&](int rank) { return small_integers(n, static_cast<uint32_t>(100 + rank)); };
    const Tensor t = of(values_of(rank_));
    world_->all_reduce_sum(t);
    const std::vector<float> sum = download<float>(t);
    EXPECT_EQ(std::vector<double>(sum.begin(), sum.end()), sum_over_ranks(size_, values_of)) << n;
  }
}

TEST_P(OnDevice, AllReduceSumGivesEveryRankTheSameBitsEveryTime) {
  for (const int64_t n : sizes) {
    const auto values_of = [&](int rank) { return random_floats(n, static_cast<uint32_t>(200 + rank)); };
    std::string first;
    for (int time = 0; time < 4; ++time) {
      const Tensor t = of(values_of(rank_));
      // Arrival order must not matter.
      if (time % 2 == 1 && rank_ == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      world_->all_reduce_sum(t);
      const std::vector<float> sum = download<float>(t);
      const std::string bits(reinterpret_cast<const char*>(sum.data()), sum.size() * sizeof(float));
      if (time == 0) {
        first = bits;
        EXPECT_LE(test::relative_error(sum, sum_over_ranks(size_, values_of)), test::tolerance(size_));
      }
      ASSERT_TRUE(bits == first) << n;
    }
    for (const std::string& other : world_->all_gather(first)) ASSERT_TRUE(other == first) << n;
  }
}

TEST_P(OnDevice, AllReduceMaxOfNegativeNumbers) {
  const auto value_at = [](int rank, int i) { return -1.0F - static_cast<float>((7 * i + 3 * rank) % 11); };
  std::vector<float> values(1000), expected(1000, -100.0F);
  for (int i = 0; i < 1000; ++i) {
    values[static_cast<size_t>(i)] = value_at(rank_, i);
    for (int rank = 0; rank < size_; ++rank) {
      float& best = expected[static_cast<size_t>(i)];
      best = std::max(best, value_at(rank, i));
    }
  }
  const Tensor t = of(values);
  world_->all_reduce_max(t);
  EXPECT_EQ(download<float>(t), expected);
}

TEST_P(OnDevice, AllReduceLeavesNeighboursAlone) {
  const Tensor t = of(std::vector<float>(12, 1.0F)).reshaped({3, 4});
  world_->all_reduce_sum(t.rows(1, 2));
  std::vector<float> expected(12, 1.0F);
  std::fill_n(expected.begin() + 4, 4, static_cast<float>(size_));
  EXPECT_EQ(download<float>(t), expected);
}

TEST_P(OnDevice, AllGatherKeepsRankOrder) {
  const Tensor part = tensor(DType::i32, {2, 3});
  const Tensor out = tensor(DType::i32, {size_, 2, 3});
  std::vector<int32_t> own(6), expected;
  std::iota(own.begin(), own.end(), 10 * rank_);
  for (int rank = 0; rank < size_; ++rank) {
    for (int i = 0; i < 6; ++i) expected.push_back(10 * rank + i);
  }
  upload<int32_t>(part, own);
  world_->all_gather(part, out);
  EXPECT_EQ(download<int32_t>(out), expected);
  EXPECT_EQ(download<int32_t>(part), own);
}

TEST_P(OnDevice, AllGatherFromTheOwnPlace) {
  const Tensor out = tensor(DType::f32, {size_, 5});
  for (const bool cut : {false, true}) {
    std::vector<float> start(static_cast<size_t>(size_) * 5, -1.0F), expected;
    for (int rank = 0; rank < size_; ++rank) {
      expected.insert(expected.end(), 5, static_cast<float>(rank));
    }
    std::fill_n(start.begin() + 5 * rank_, 5, static_cast<float>(rank_));
    upload<float>(out, start);
    if (cut) {
      world_in_pieces()->all_gather(out.at(rank_), out);
    } else {
      world_->all_gather(out.at(rank_), out);
    }
    EXPECT_EQ(download<float>(out), expected);
  }
}

TEST_P(OnDevice, LongMessagesGoInPieces) {
  auto cut = world_in_pieces();
  for (const int64_t n : {1, 4, 5, 6, 10, 23}) {
    const auto values_of = [&](int rank) { return small_integers(n, static_cast<uint32_t>(300 + rank)); };
    const Tensor t = of(values_of(rank_));
    cut->all_reduce_sum(t);
    const std::vector<float> sum = download<float>(t);
    EXPECT_EQ(std::vector<double>(sum.begin(), sum.end()), sum_over_ranks(size_, values_of)) << n;

    const Tensor part = of(values_of(rank_));
    const Tensor out = tensor(DType::f32, {size_, n});
    cut->all_gather(part, out);
    std::vector<float> expected;
    for (int rank = 0; rank < size_; ++rank) {
      const std::vector<float> values = values_of(rank);
      expected.insert(expected.end(), values.begin(), values.end());
    }
    EXPECT_EQ(download<float>(out), expected) << n;
  }
}

TEST_P(OnDevice, SumsOfBf16) {
  const Tensor numbers = tensor(DType::bf16, {5});
  std::vector<float> values, sums;
  for (int i = 0; i < 5; ++i) {
    values.push_back(static_cast<float>(i - 2 * world_->rank()));
    sums.push_back(static_cast<float>(size_ * i - size_ * (size_ - 1)));
  }
  upload_floats(numbers, values);
  world_->all_reduce_sum(numbers);
  EXPECT_EQ(download_floats(numbers), sums);
}

TEST_P(OnDevice, WrongTensorsAreBugs) {
  const Tensor matrix = tensor(DType::f32, {4, 6});
  const Tensor numbers = tensor(DType::i32, {4});
  EXPECT_THROW(world_->all_reduce_sum(matrix.columns(0, 3)), BugError);
  EXPECT_THROW(world_->all_reduce_max(matrix.columns(0, 3)), BugError);
  EXPECT_THROW(world_->all_reduce_sum(numbers), BugError);
  EXPECT_THROW(world_->all_reduce_max(tensor(DType::u32, {4})), BugError);
  EXPECT_THROW(world_->all_gather(matrix, tensor(DType::f32, {size_, 4, 5})), BugError);
  EXPECT_THROW(world_->all_gather(numbers, tensor(DType::f32, {size_, 4})), BugError);
  EXPECT_THROW(world_->all_gather(matrix.columns(0, 3), tensor(DType::f32, {size_, 4, 3})), BugError);
}

TEST(Control, BroadcastFromEveryRoot) {
  for (const auto& world : both_worlds()) {
    for (int root = 0; root < world->size(); ++root) {
      std::vector<std::byte> bytes(13, std::byte{0});
      if (world->rank() == root) {
        for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(20 * root + 1 + int(i));
      }
      world->broadcast(bytes, root);
      for (size_t i = 0; i < bytes.size(); ++i) {
        EXPECT_EQ(bytes[i], static_cast<std::byte>(20 * root + 1 + int(i)));
      }
    }
    EXPECT_THROW(world->broadcast({}, world->size()), BugError);
    EXPECT_THROW(world->broadcast({}, -1), BugError);
  }
}

TEST(Control, SumsOfDoublesAndLargestIntegers) {
  for (const auto& world : both_worlds()) {
    const int size = world->size();
    std::vector<double> values(12);
    std::vector<int64_t> numbers(12);
    for (int i = 0; i < 12; ++i) {
      values[static_cast<size_t>(i)] = i + 0.25 * world->rank();
      numbers[static_cast<size_t>(i)] = (int64_t{1} << 40) * ((i + world->rank()) % size) - 5;
    }
    world->all_reduce_sum(values);
    world->all_reduce_max(numbers);
    for (int i = 0; i < 12; ++i) {
      EXPECT_EQ(values[static_cast<size_t>(i)], size * i + 0.25 * (size * (size - 1) / 2));
      EXPECT_EQ(numbers[static_cast<size_t>(i)], (int64_t{1} << 40) * (size - 1) - 5);
    }
  }
}

TEST(Control, AllGatherOfStringsOfDifferentLengths) {
  const auto text_of = [](int rank) {
    return rank == 1 ? std::string()
                     : std::string(static_cast<size_t>(3 * rank + 1), char('a' + rank)) + '\0';
  };
  for (const auto& world : both_worlds()) {
    const std::vector<std::string> texts = world->all_gather(text_of(world->rank()));
    ASSERT_EQ(texts.size(), static_cast<size_t>(world->size()));
    for (int rank = 0; rank < world->size(); ++rank) {
      EXPECT_EQ(texts[static_cast<size_t>(rank)], text_of(rank));
    }
  }
}

// Which ranks are in a group: one bit for each.
double members(Communicator& group, int world_rank) {
  double sum = static_cast<double>(1 << world_rank);
  group.all_reduce_sum(std::span(&sum, 1));
  return sum;
}

TEST(GroupsOfAGrid, TensorAndDataGroupsHoldTheRightRanks) {
  const MpiSession& session = test_session();
  for (int tp = 1; tp <= session.size(); ++tp) {
    if (session.size() % tp != 0) continue;
    const Grid grid = grid_of(session.size(), tp);
    const Groups groups = make_groups(session, grid);
    EXPECT_EQ(groups.place, place_of(session.rank(), grid));
    EXPECT_EQ(groups.world->rank(), session.rank());
    EXPECT_EQ(groups.world->size(), session.size());
    EXPECT_EQ(groups.tensor->rank(), groups.place.tp_rank);
    EXPECT_EQ(groups.tensor->size(), tp);
    EXPECT_EQ(groups.data->rank(), groups.place.replica);
    EXPECT_EQ(groups.data->size(), grid.dp);
    double tensor = 0.0, data = 0.0;
    for (int rank = 0; rank < session.size(); ++rank) {
      const Place place = place_of(rank, grid);
      if (place.replica == groups.place.replica) tensor += 1 << rank;
      if (place.tp_rank == groups.place.tp_rank) data += 1 << rank;
    }
    EXPECT_EQ(members(*groups.tensor, session.rank()), tensor);
    EXPECT_EQ(members(*groups.data, session.rank()), data);
    EXPECT_EQ(members(*groups.world, session.rank()), (1 << session.size()) - 1);
  }
  EXPECT_THROW(make_groups(session, Grid{session.size(), 2}), BugError);
}

}  // namespace
}  // namespace sl
