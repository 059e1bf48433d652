// Collectives on tensors of every device against the host's results, by every way a group of GPUs has: NCCL,
// and peer memory with one meeting and with two.
#include <chrono>
#include <thread>

#include "core/rng.hpp"
#include "kernels/ops.hpp"
#include "tests/on_ranks.hpp"

namespace sl {
namespace {

using test::name_of;
using test::places;

const GpuCollectives ways[] = {{}, {.shares_from = 0}, {.peer_bytes = 0}};

// Around the 16 bytes that go together, a block, all blocks, and several rounds of all blocks.
constexpr int64_t sizes[] = {1,     3,      8,      17,     576,    3584,   8193,
                             65537, 262144, 262145, 300001, 524288, 600007, 1500007};

class Collectives : public test::OnRanks {
 protected:
  static int rank() { return test_session().rank(); }
  static int size() { return test_session().size(); }
  bool gpu() const { return device() == Device::cuda; }

  // What the ranks' `values_of(rank)` sum to, in double.
  std::vector<double> sum_of(const std::function<std::vector<float>(int)>& values_of) const {
    std::vector<double> sum;
    for (int r = 0; r < size(); ++r) {
      const std::vector<float> values = values_of(r);
      sum.resize(values.size());
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(values[i]);
    }
    return sum;
  }
};

TEST_P(Collectives, SumsOfSmallIntegersAreExactAndTouchNothingElse) {
  for (const GpuCollectives& way : ways) {
    const auto group = world(way);
    for (const int64_t n : sizes) {
      const auto values_of = [&](int r) {
        return test::small_integers(n, static_cast<uint32_t>(10 * r + n % 7));
      };
      const std::vector<double> expected = sum_of(values_of);
      // Once from the start of the memory, once from where no 16 bytes begin.
      for (const int64_t offset : {0, 1}) {
        const test::Stored stored(place(), {n + offset});
        const Tensor tensor = stored.tensor().rows(offset, n + offset);
        upload_floats(tensor, values_of(rank()));
        group->all_reduce_sum(tensor);
        const std::vector<float> sum = download_floats(tensor);
        ASSERT_TRUE(std::equal(sum.begin(), sum.end(), expected.begin(), expected.end()))
            << n << " from " << offset << " through " << way_of(*group);
        ASSERT_TRUE(stored.surroundings_untouched()) << n << " through " << way_of(*group);
      }
    }
  }
}

TEST_P(Collectives, SumsAreTheHostsAndTheSameBitsOnAllRanksEveryTime) {
  for (const GpuCollectives& way : ways) {
    const auto group = world(way);
    for (const int64_t n : sizes) {
      const auto values_of = [&](int r) { return floats(n, static_cast<uint32_t>(300 + r)); };
      Arena arena(device(), Arena::bytes_for(storage(), {n}), "test");
      const Tensor tensor = arena.take(storage(), {n});
      std::string first;
      for (int time = 0; time < 3; ++time) {
        upload_floats(tensor, values_of(rank()));
        if (time == rank()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        group->all_reduce_sum(tensor);
        const std::vector<float> sum = download_floats(tensor);
        const std::string bits(reinterpret_cast<const char*>(sum.data()), sum.size() * sizeof(float));
        if (time == 0) first = bits;
        // A single number may be the rest of a difference. NCCL rounds what every rank adds.
        if (n > 100) {
          EXPECT_LE(test::relative_error(sum, sum_of(values_of)), test::tolerance(size(), storage(), size()))
              << n << " through " << way_of(*group);
        }
        ASSERT_TRUE(bits == first) << n << " through " << way_of(*group);
      }
      for (const std::string& other : group->all_gather(first))
        ASSERT_TRUE(other == first) << n << " through " << way_of(*group);
    }
  }
}

// Thousands of calls of different sizes, recorded and replayed, with new numbers each time, while ranks are
// late by turns on the host and on the device: a number of another call, or one too early, makes a sum wrong.
TEST_P(Collectives, CallsOfAnySizeFollowEachOtherWithoutMixing) {
  const Context here = context();
  const int64_t lengths[] = {1, 3584, 17, 65537, 8, 576, 20000, 600007};
  const auto value_of = [](int r, int64_t call, int64_t i) {
    return static_cast<float>((7 * i + 13 * call + 5 * r + i / 11) % 9 - 4);
  };
  for (const GpuCollectives& way : ways) {
    const auto group = world(way);
    Arena arena(device(), int64_t{16} << 20, "test");
    std::vector<Tensor> given, sums;
    for (const int64_t n : lengths) {
      given.push_back(arena.take(storage(), {1, n}));
      sums.push_back(arena.take(storage(), {1, n}));
    }
    const Tensor ballast = arena.take(DType::f32, {1, int64_t{1} << 20});
    // Each twice: the second time every rank gives the sum.
    const auto operations = [&] {
      for (size_t t = 0; t < given.size(); ++t) run(here, Copy{given[t], sums[t]});
      for (int time = 0; time < 2; ++time) {
        for (const Tensor& sum : sums) group->all_reduce_sum(sum);
      }
    };
    operations();
    const bool recorded = group->in_stream();
    const Graph graph = recorded ? Graph::record(here, operations) : Graph();
    const int64_t rounds = recorded ? 200 : 2;
    Random random({.seed = 5, .sample = rank()});
    for (int64_t round = 0; round < rounds; ++round) {
      for (size_t t = 0; t < given.size(); ++t) {
        std::vector<float> values(static_cast<size_t>(lengths[t]));
        for (size_t i = 0; i < values.size(); ++i)
          values[i] = value_of(rank(), round, static_cast<int64_t>(i));
        upload_floats(given[t], values);
      }
      if (random.below(4) == 0) std::this_thread::sleep_for(std::chrono::microseconds(random.below(2000)));
      for (int64_t late = random.below(8); late > 0; --late) run(here, Fill{ballast, 1.0F});
      // Several replays without the host in between: each begins from what was given.
      const int64_t replays = recorded ? 10 : 1;
      for (int64_t replay = 0; replay < replays; ++replay) {
        if (recorded) {
          graph.replay(here);
        } else {
          operations();
        }
      }
      for (size_t t = 0; t < given.size(); ++t) {
        const std::vector<float> found = download_floats(sums[t]);
        for (size_t i = 0; i < found.size(); ++i) {
          float expected = 0.0F;
          for (int r = 0; r < size(); ++r) expected += value_of(r, round, static_cast<int64_t>(i));
          ASSERT_EQ(found[i], expected * static_cast<float>(size()))
              << "number " << i << " of " << lengths[t] << ", round " << round << " through "
              << way_of(*group);
        }
      }
    }
  }
}

TEST_P(Collectives, LargestAndGathered) {
  const Context here = context();
  const auto group = world();
  for (const int64_t n : {int64_t{1}, int64_t{17}, int64_t{4097}, int64_t{300001}}) {
    const auto values_of = [&](int r) { return floats(n, static_cast<uint32_t>(700 + r)); };
    Arena arena(device(), 2 * Arena::bytes_for(storage(), {n}) + Arena::bytes_for(storage(), {size(), n}),
                "test");
    const Tensor most = arena.take(storage(), {n}), part = arena.take(storage(), {n});
    const Tensor all = arena.take(storage(), {size(), n});
    upload_floats(most, values_of(rank()));
    upload_floats(part, values_of(rank()));
    const auto operations = [&] {
      group->all_reduce_max(most);
      group->all_gather(part, all);
    };
    operations();
    if (group->in_stream()) Graph::record(here, operations).replay(here);
    synchronize(here);
    std::vector<float> expected = values_of(0), gathered;
    for (int r = 0; r < size(); ++r) {
      const std::vector<float> values = values_of(r);
      for (size_t i = 0; i < values.size(); ++i) expected[i] = std::max(expected[i], values[i]);
      gathered.insert(gathered.end(), values.begin(), values.end());
    }
    EXPECT_EQ(download_floats(most), expected) << n;
    EXPECT_EQ(download_floats(all), gathered) << n;
  }
}

// Small integers: exact in every order.
TEST_P(Collectives, SumsForOneRankAndInShares) {
  for (const GpuCollectives& way : ways) {
    const auto group = world(way);
    for (const int64_t n : {int64_t{1}, int64_t{17}, int64_t{4097}, int64_t{300001}}) {
      const auto values_of = [&](int r) {
        return test::small_integers(n * size(), static_cast<uint32_t>(20 * r + n % 7));
      };
      const std::vector<double> expected = sum_of(values_of);
      for (int root = 0; root < size(); ++root) {
        const test::Stored stored(place(), {n * size()});
        upload_floats(stored.tensor(), values_of(rank()));
        group->reduce_sum(stored.tensor(), root);
        const std::vector<float> sum = download_floats(stored.tensor());
        ASSERT_TRUE(rank() != root || std::equal(sum.begin(), sum.end(), expected.begin(), expected.end()))
            << n;
        ASSERT_TRUE(stored.surroundings_untouched()) << n;
      }
      const test::Stored whole(place(), {size(), n}), part(place(), {n});
      upload_floats(whole.tensor(), values_of(rank()));
      group->reduce_scatter_sum(whole.tensor(), part.tensor());
      const std::vector<float> share = download_floats(part.tensor());
      ASSERT_TRUE(std::equal(share.begin(), share.end(), expected.begin() + rank() * n)) << n;
      ASSERT_TRUE(part.surroundings_untouched()) << n;
    }
  }
}

// What was sent before is in the sum, what is sent after the meeting finds the sum; sums in between are
// others' affair.
TEST_P(Collectives, BesideOtherWork) {
  const Context here = context();
  const auto group = world();
  constexpr int64_t n = 300001;
  Arena arena(device(), 3 * Arena::bytes_for(storage(), {1, n}) + (int64_t{5} << 20), "test");
  const Tensor beside = arena.take(storage(), {1, n}), own = arena.take(storage(), {1, n}),
               copy = arena.take(storage(), {1, n});
  const Tensor ballast = arena.take(DType::f32, {1, int64_t{1} << 20});
  const float sum = static_cast<float>(size() * (size() + 1)) / 2.0F;
  for (int round = 0; round < 20; ++round) {
    run(here, Fill{beside, 0.0F});
    for (int late = 0; late < (round + rank()) % 5; ++late) run(here, Fill{ballast, 1.0F});
    run(here, Fill{beside, static_cast<float>(rank() + 1)});
    group->send_beside([&] { group->all_reduce_sum(beside.rows(0, 1)); });
    run(here, Fill{own, static_cast<float>(rank())});
    group->join();
    run(here, Copy{beside, copy});
    run(here, Fill{beside, -1.0F});
    ASSERT_EQ(download_floats(copy), std::vector<float>(n, sum)) << "round " << round;
    ASSERT_EQ(download_floats(own), std::vector<float>(n, static_cast<float>(rank()))) << "round " << round;
  }
}

// With fixed orders a number's sum is the same wherever it stands, in a message of whatever size.
TEST_P(Collectives, DeterministicSumsDoNotDependOnTheMessage) {
  Context fixed = context();
  fixed.deterministic = true;
  constexpr int64_t largest = 600007;  // in several pieces
  const auto group = with_nccl(test_session().world(), fixed, {.peer_bytes = int64_t{256} << 10});
  if (size() > 2 && gpu() && way_of(*group) != std::string("peer memory"))
    GTEST_SKIP() << "sums go through " << way_of(*group);
  const std::vector<float> values = floats(largest, static_cast<uint32_t>(900 + rank()));
  Arena arena(device(), 2 * Arena::bytes_for(storage(), {largest}), "test");
  const Tensor whole = arena.take(storage(), {largest}), pieces = arena.take(storage(), {largest});
  upload_floats(whole, values);
  upload_floats(pieces, values);
  group->all_reduce_sum(whole);
  if (!gpu()) return;  // MPI's order depends on the number of elements
  const int64_t cuts[] = {0, 1, 1000, 70001, 400000, largest};
  for (size_t i = 0; i + 1 < std::size(cuts); ++i) group->all_reduce_sum(pieces.rows(cuts[i], cuts[i + 1]));
  EXPECT_EQ(download_floats(pieces), download_floats(whole));
}

SL_ON_DEVICES(Collectives);

}  // namespace
}  // namespace sl
