#include "core/rng.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "core/error.hpp"

namespace sl::test {
namespace {

// Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds).
TEST(PhiloxTest, MatchesThePublishedVectors) {
  using Block = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(StreamTest, EveryFieldOfTheAddressCounts) {
  const RandomAddress base{.seed = 7, .iteration = 1, .stage = 2, .sample = 3, .attempt = 4, .turn = 5};
  std::vector<RandomAddress> others(6, base);
  others[0].seed = 8;
  others[1].iteration = 2;
  others[2].stage = 3;
  others[3].sample = 4;
  others[4].attempt = 5;
  others[5].turn = 6;
  std::set<uint64_t> streams = {stream_of(base)};
  for (const RandomAddress& other : others) streams.insert(stream_of(other));
  EXPECT_EQ(streams.size(), 7U);
  EXPECT_EQ(stream_of(base), stream_of(RandomAddress(base)));

  // Fields do not run into each other: small addresses have distinct streams.
  streams.clear();
  for (int32_t stage = 0; stage < 10; ++stage) {
    for (int64_t sample = 0; sample < 100; ++sample) {
      for (int32_t attempt = 0; attempt < 10; ++attempt)
        streams.insert(stream_of({.seed = 1, .stage = stage, .sample = sample, .attempt = attempt}));
    }
  }
  EXPECT_EQ(streams.size(), 10000U);
}

TEST(UniformTest, LiesBelowOneAndIsFlat) {
  constexpr int n = 100000, bins = 20;
  std::vector<double> counts(bins, 0.0);
  for (int position = 0; position < n; ++position) {
    const float u = uniform_at(99, static_cast<uint64_t>(position));
    ASSERT_GE(u, 0.0F);
    ASSERT_LT(u, 1.0F);
    counts[static_cast<size_t>(u * bins)] += 1.0;
  }
  double chi_square = 0.0;
  for (double count : counts) chi_square += (count - n / bins) * (count - n / bins) / (n / bins);
  EXPECT_LT(chi_square, (bins - 1) + 5.0 * std::sqrt(2.0 * (bins - 1)));
  EXPECT_NE(uniform_at(99, 0), uniform_at(100, 0));
}

TEST(RandomTest, IsASequenceNamedByItsAddress) {
  Random one({.seed = 5}), same({.seed = 5}), other({.seed = 6});
  std::vector<uint32_t> a, b, c;
  for (int i = 0; i < 100; ++i) {
    a.push_back(one());
    b.push_back(same());
    c.push_back(other());
  }
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  EXPECT_EQ(std::set<uint32_t>(a.begin(), a.end()).size(), a.size());
}

TEST(RandomTest, BelowAndUniformCoverTheirRanges) {
  Random random({.seed = 3});
  std::vector<int> counts(7, 0);
  double mean = 0.0;
  for (int i = 0; i < 70000; ++i) {
    const int64_t draw = random.below(7);
    ASSERT_GE(draw, 0);
    ASSERT_LT(draw, 7);
    ++counts[static_cast<size_t>(draw)];
    const double u = random.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    mean += u / 70000.0;
  }
  for (int count : counts) EXPECT_NEAR(count, 10000, 5 * 93);  // standard deviation 92.6
  EXPECT_NEAR(mean, 0.5, 5 * 0.2887 / std::sqrt(70000.0));
  EXPECT_EQ(random.below(1), 0);
  EXPECT_GT(random.below(int64_t{1} << 62), int64_t{1} << 32);
  EXPECT_THROW((void)random.below(0), BugError);
}

TEST(RandomTest, ShufflesWithTheStandardLibrary) {
  std::vector<int> values(50), before;
  std::iota(values.begin(), values.end(), 0);
  before = values;
  Random random({.seed = 1});
  std::shuffle(values.begin(), values.end(), random);
  EXPECT_NE(values, before);
  std::sort(values.begin(), values.end());
  EXPECT_EQ(values, before);
}

}  // namespace
}  // namespace sl::test
