#include "train/optimizer_layout.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"

namespace sl {
namespace {

// Forms of real sizes: small, 135 million, 7.6 billion; none a multiple of everything.
constexpr int64_t sizes[] = {0, 31, 37 * 16 + 5, 134515008, 7615616512 + 96};
constexpr int replica_counts[] = {1, 2, 3, 7, 64, 1000, 1024, 4096};

TEST(OptimizerLayout, OneReplicaHoldsEverything) {
  EXPECT_EQ(state_share(1000, 1), 0);
  const std::vector<HeldNumbers> held = held_numbers(1000, 0, 1, 0);
  ASSERT_EQ(held.size(), 1U);
  EXPECT_EQ(held[0].begin, 0);
  EXPECT_EQ(held[0].at, 0);
  EXPECT_EQ(held[0].count, 1000);
}

TEST(OptimizerLayout, SharesOfThreeReplicasOf200) {
  EXPECT_EQ(state_share(200, 3), 64);
  const std::vector<HeldNumbers> held = held_numbers(200, 64, 3, 2);
  ASSERT_EQ(held.size(), 2U);
  EXPECT_EQ(held[0].begin, 128);
  EXPECT_EQ(held[0].count, 64);
  EXPECT_EQ(held[1].begin, 192);
  EXPECT_EQ(held[1].at, 64);
  EXPECT_EQ(held[1].count, 8);
}

// Shares are equal and aligned, one after the other; fewer than 32 numbers a replica are left, which all
// hold.
TEST(OptimizerLayout, EverySlotIsOwnedOnceUpTo4096Replicas) {
  for (const int replicas : replica_counts) {
    for (const int64_t numbers : sizes) {
      const int64_t share = state_share(numbers, replicas);
      int64_t reached = 0;
      for (int replica = 0; replica < replicas; ++replica) {
        const std::vector<HeldNumbers> held = held_numbers(numbers, share, replicas, replica);
        int64_t at = 0;
        for (const HeldNumbers& part : held) {
          ASSERT_EQ(part.at, at) << "the parts of a replica lie one after the other";
          at += part.count;
        }
        if (share > 0) {
          ASSERT_EQ(held.front().begin, reached);
          ASSERT_EQ(held.front().count, share);
          ASSERT_EQ(share % 32, 0);
          reached += share;
        }
        ASSERT_EQ(held.back().begin + held.back().count, numbers);
        ASSERT_EQ(held.back().begin, replicas * share) << "what all hold";
      }
      ASSERT_EQ(reached, replicas * share);
      if (replicas > 1) {
        ASSERT_LT(numbers - reached, int64_t{32} * replicas);
      }
    }
  }
}

std::vector<int64_t> layers_of(int64_t numbers, int64_t layers) {
  std::vector<int64_t> begins;
  for (int64_t layer = 0; layer < layers; ++layer)
    begins.push_back(numbers / 10 + layer * (numbers - numbers / 10) / layers);
  return begins;
}

TEST(OptimizerLayout, EveryNumberOfTheGradientIsSummedOnceForWhoHoldsIt) {
  for (const int replicas : replica_counts) {
    for (const int64_t numbers : sizes) {
      const std::vector<int64_t> layers = layers_of(numbers, 28);
      const int64_t share = state_share(numbers, replicas);
      const BucketPlan plan = plan_buckets(layers, numbers, share, replicas);
      int64_t end = numbers;
      for (const GradientBucket& bucket : plan.buckets) {
        ASSERT_EQ(bucket.end, end) << "from the end to the begin, without a gap";
        ASSERT_LT(bucket.begin, bucket.end);
        ASSERT_LE(bucket.end - bucket.begin, int64_t{16} << 20);
        if (bucket.owner >= 0) {
          ASSERT_GE(bucket.begin, bucket.owner * share);
          ASSERT_LE(bucket.end, (bucket.owner + 1) * share);
        } else {
          ASSERT_GE(bucket.begin, replicas * share);
        }
        end = bucket.begin;
      }
      ASSERT_EQ(end, 0);
      // What may be summed when a layer is complete lies in it and later ones, and no layer is passed over.
      ASSERT_EQ(plan.from_layer_on.size(), layers.size());
      for (size_t layer = 0; layer < layers.size(); ++layer) {
        const size_t count = plan.from_layer_on[layer];
        if (count > 0) {
          ASSERT_GE(plan.buckets[count - 1].begin, layers[layer]);
        }
        if (layer > 0) {
          ASSERT_GE(plan.from_layer_on[layer - 1], count);
        }
      }
      const size_t blocks = plan.from_layer_on.front();
      ASSERT_EQ(blocks == 0 ? numbers : plan.buckets[blocks - 1].begin, layers.front());
    }
  }
}

TEST(OptimizerLayout, NoSuchShareIsABug) {
  EXPECT_THROW(state_share(100, 0), BugError);
  EXPECT_THROW(held_numbers(100, 32, 4, 0), BugError);
  EXPECT_THROW(held_numbers(100, 32, 2, 2), BugError);
}

}  // namespace
}  // namespace sl
