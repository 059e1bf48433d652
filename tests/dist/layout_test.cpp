#include "dist/layout.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/rng.hpp"

namespace sl {
namespace {

using testing::HasSubstr;

template <typename Call>
std::string input_error_of(Call call) {
  try {
    call();
  } catch (const InputError& error) {
    return error.what();
  }
  return "no InputError";
}

TEST(Grid, ConsecutiveRanksFormAReplica) {
  const Grid grid{3, 2};
  EXPECT_EQ(grid.ranks(), 6);
  EXPECT_EQ(place_of(0, grid), (Place{0, 0}));
  EXPECT_EQ(place_of(1, grid), (Place{0, 1}));
  EXPECT_EQ(place_of(2, grid), (Place{1, 0}));
  EXPECT_EQ(place_of(5, grid), (Place{2, 1}));
}

TEST(Grid, EveryRankHasItsOwnPlaceUpTo4096) {
  for (int ranks = 1; ranks <= 4096; ranks *= 2) {
    for (int tp = 1; tp <= std::min(ranks, 64); tp *= 2) {
      const Grid grid = grid_of(ranks, tp);
      ASSERT_EQ(grid.ranks(), ranks);
      std::set<std::pair<int, int>> places;
      for (int rank = 0; rank < ranks; ++rank) {
        const Place place = place_of(rank, grid);
        ASSERT_GE(place.replica, 0);
        ASSERT_LT(place.replica, grid.dp);
        ASSERT_GE(place.tp_rank, 0);
        ASSERT_LT(place.tp_rank, grid.tp);
        ASSERT_EQ(place.replica * tp + place.tp_rank, rank);
        places.emplace(place.replica, place.tp_rank);
      }
      ASSERT_EQ(places.size(), static_cast<size_t>(ranks));
    }
  }
}

TEST(Grid, RanksThatTpDoesNotDivideAreTheUsersMistake) {
  const std::string line = input_error_of([] { grid_of(6, 4); });
  EXPECT_THAT(line, HasSubstr("--tp"));
  EXPECT_THAT(line, HasSubstr("6 ranks are not a multiple of 4"));
  EXPECT_THROW(grid_of(4, 0), InputError);
  EXPECT_THROW(grid_of(4, -2), InputError);
  EXPECT_THROW(grid_of(2, 4), InputError);
}

TEST(Grid, RankOutsideIsABug) {
  EXPECT_THROW(place_of(4, Grid{2, 2}), BugError);
  EXPECT_THROW(place_of(-1, Grid{2, 2}), BugError);
}

TEST(ShareOf, FirstSharesAreOneLarger) {
  EXPECT_EQ(share_of(10, 4, 0), (Range{0, 3}));
  EXPECT_EQ(share_of(10, 4, 1), (Range{3, 6}));
  EXPECT_EQ(share_of(10, 4, 2), (Range{6, 8}));
  EXPECT_EQ(share_of(10, 4, 3), (Range{8, 10}));
  EXPECT_EQ(share_of(2, 4, 3), (Range{2, 2}));
}

TEST(ShareOf, SharesCoverEverythingOnceUpTo4096) {
  for (const int parts : {1, 2, 3, 7, 8, 64, 1000, 1024, 4096}) {
    for (const int64_t n :
         {int64_t{0}, int64_t{1}, int64_t{5}, int64_t{4095}, int64_t{151936}, int64_t{7000000000001}}) {
      int64_t reached = 0;
      for (int part = 0; part < parts; ++part) {
        const Range share = share_of(n, parts, part);
        ASSERT_EQ(share.begin, reached);
        ASSERT_GE(share.size(), n / parts);
        ASSERT_LE(share.size(), n / parts + 1);
        ASSERT_LE(share.size(), share_of(n, parts, 0).size());
        reached = share.end;
      }
      ASSERT_EQ(reached, n);
    }
  }
}

TEST(ShareOf, NoSuchShareIsABug) {
  EXPECT_THROW(share_of(-1, 2, 0), BugError);
  EXPECT_THROW(share_of(4, 0, 0), BugError);
  EXPECT_THROW(share_of(4, 2, 2), BugError);
  EXPECT_THROW(share_of(4, 2, -1), BugError);
}

TEST(SamplesToTake, HalfAnEvenShareButNeverNoneNorMoreThanThereIsRoom) {
  EXPECT_EQ(samples_to_take(1000, 4, 256), 125);
  EXPECT_EQ(samples_to_take(1000, 4, 100), 100);
  EXPECT_EQ(samples_to_take(15, 4, 100), 1);
  EXPECT_EQ(samples_to_take(0, 4096, 1), 1);
  EXPECT_EQ(samples_to_take(1000, 1, 1000), 500);
  EXPECT_THROW(samples_to_take(-1, 4, 1), BugError);
  EXPECT_THROW(samples_to_take(1, 4, 0), BugError);
}

// Replicas take in any order, and between looking at what is left and taking others may have taken.
TEST(SamplesToTake, EverySampleIsHandedOutOnceUpTo4096Replicas) {
  for (const int replicas : {1, 2, 3, 7, 64, 1000, 1024, 4096}) {
    for (const int64_t total : {int64_t{0}, int64_t{1}, int64_t{5000}, int64_t{100003}}) {
      Random random({.seed = 3, .sample = replicas, .attempt = static_cast<int32_t>(total)});
      int64_t counter = 0;  // what fetch_add works on
      int64_t given = 0;
      std::vector<int64_t> seen_left(static_cast<size_t>(replicas), -1);  // -1: has not looked
      while (given < total) {
        const auto replica = static_cast<size_t>(random.below(replicas));
        const int64_t left = std::max<int64_t>(0, total - counter);
        int64_t& seen = seen_left[replica];
        if (seen < 0 && random.below(2) == 0) {
          seen = left;
          continue;
        }
        if (seen < 0) seen = left;
        const int64_t share = samples_to_take(seen, replicas, 1 + random.below(256));
        ASSERT_LE(share, std::max<int64_t>(1, seen / (2 * replicas)));
        const int64_t begin = std::min(total, counter), end = std::min(total, begin + share);
        counter += share;
        ASSERT_EQ(begin, given) << "a gap, or a sample twice";
        given = end;
        seen = -1;
      }
      ASSERT_EQ(given, total);
    }
  }
}

// When each replica has taken once, in turn, none has more than another's share and one sample besides, and
// no less than a third of the samples are left for those that turn out to be faster.
TEST(SamplesToTake, TheFirstRoundIsBalanced) {
  for (const int replicas : {2, 16, 1024, 4096}) {
    const int64_t total = int64_t{100} * replicas;
    int64_t left = total;
    const int64_t first = samples_to_take(left, replicas, total);
    int64_t last = 0;
    for (int replica = 0; replica < replicas; ++replica) {
      last = samples_to_take(left, replicas, total);
      ASSERT_LE(last, first);
      left -= last;
    }
    // (1 - 1 / 2R)^R of them, which falls from 0.5625 at two replicas to e^-1/2 = 0.607 at many.
    EXPECT_GE(left, total * 9 / 16);
    EXPECT_LE(left, total * 62 / 100);
    EXPECT_GE(2 * last, first);
  }
}

TEST(HeadShare, KeyHeadsAreSplitWhileThereAreEnough) {
  const HeadShare share = head_share(28, 4, 2, 1);
  EXPECT_EQ(share.query_heads, (Range{14, 28}));
  EXPECT_EQ(share.key_heads, (Range{2, 4}));
}

TEST(HeadShare, KeyHeadsAreReplicatedBeyond) {
  // 32 query heads, 8 a key-value head, over 8 ranks: two ranks hold the same one.
  for (int rank = 0; rank < 8; ++rank) {
    const HeadShare share = head_share(32, 4, 8, rank);
    EXPECT_EQ(share.query_heads, (Range{4 * rank, 4 * rank + 4}));
    EXPECT_EQ(share.key_heads, (Range{rank / 2, rank / 2 + 1}));
  }
}

TEST(HeadShare, EveryQueryHeadFindsItsKeyHeadOnItsRank) {
  for (const int64_t key_heads : {1, 2, 3, 4, 8, 16}) {
    for (const int64_t group : {1, 2, 3, 4, 7, 8, 16}) {
      const int64_t query_heads = key_heads * group;
      for (int tp = 1; tp <= query_heads; ++tp) {
        if (query_heads % tp != 0 || (key_heads % tp != 0 && tp % key_heads != 0)) continue;
        int64_t queries = 0;
        for (int rank = 0; rank < tp; ++rank) {
          const HeadShare share = head_share(query_heads, key_heads, tp, rank);
          ASSERT_EQ(share.query_heads.begin, queries);
          queries = share.query_heads.end;
          ASSERT_EQ(share.key_heads.size(), std::max<int64_t>(1, key_heads / tp));
          // A query head's place within the rank leads to its key head's place within the rank, with one
          // group size for the whole rank.
          ASSERT_EQ(share.query_heads.size() % share.key_heads.size(), 0);
          const int64_t own_group = share.query_heads.size() / share.key_heads.size();
          for (int64_t head = share.query_heads.begin; head < share.query_heads.end; ++head) {
            ASSERT_EQ(share.key_heads.begin + (head - share.query_heads.begin) / own_group, head / group);
          }
        }
        ASSERT_EQ(queries, query_heads);
      }
    }
  }
}

TEST(HeadShare, HeadsThatCannotBeSharedAreABug) {
  EXPECT_THROW(head_share(9, 3, 2, 0), BugError);
  EXPECT_THROW(head_share(12, 4, 3, 0), BugError);
  EXPECT_THROW(head_share(9, 2, 3, 0), BugError);
}

TEST(VocabularyShare, AnyVocabularyIsCoveredAndRankZeroHasTheLargestShare) {
  for (const int64_t vocabulary : {49152, 151936, 128256, 32001, 257}) {
    for (const int tp : {1, 2, 3, 4, 8, 64}) {
      int64_t reached = 0;
      for (int rank = 0; rank < tp; ++rank) {
        const Range share = vocabulary_share(vocabulary, tp, rank);
        ASSERT_EQ(share.begin, reached);
        ASSERT_LE(share.size(), vocabulary_share(vocabulary, tp, 0).size());
        ASSERT_GE(share.size(), vocabulary_share(vocabulary, tp, 0).size() - 1);
        reached = share.end;
      }
      ASSERT_EQ(reached, vocabulary);
    }
  }
}

TEST(TensorParallel, SizesThatDivideAreAccepted) {
  for (const int tp : {1, 2, 4}) EXPECT_NO_THROW(check_tensor_parallel(28, 4, 18944, 152064, tp));
  for (const int tp : {1, 2, 4, 8, 16, 32}) {
    EXPECT_NO_THROW(check_tensor_parallel(32, 8, 14336, 128256, tp));
  }
  for (const int tp : {1, 3}) EXPECT_NO_THROW(check_tensor_parallel(9, 3, 1536, 49152, tp));
}

TEST(TensorParallel, TheLineNamesTheNumberAndWhatWouldWork) {
  const std::string queries = input_error_of([] { check_tensor_parallel(9, 3, 1536, 49152, 2); });
  EXPECT_THAT(queries, HasSubstr("--tp: 2 ranks"));
  EXPECT_THAT(queries, HasSubstr("9 query heads are not a multiple of 2"));
  EXPECT_THAT(queries, HasSubstr("use one of 1, 3"));
  EXPECT_EQ(std::count(queries.begin(), queries.end(), '\n'), 0);

  EXPECT_THAT(input_error_of([] { check_tensor_parallel(28, 4, 18944, 152064, 7); }),
              HasSubstr("7 is neither a divisor nor a multiple of its 4 key-value heads"));
  EXPECT_THAT(input_error_of([] { check_tensor_parallel(8, 8, 100, 1000, 8); }),
              testing::AllOf(HasSubstr("ffn of 100 is not a multiple of 8"), HasSubstr("one of 1, 2, 4")));
  EXPECT_THAT(input_error_of([] { check_tensor_parallel(8, 8, 64, 3, 4); }),
              HasSubstr("vocabulary has only 3 tokens"));
  EXPECT_THAT(input_error_of([] { check_tensor_parallel(8, 8, 64, 100, 0); }),
              HasSubstr("at least one rank"));
  EXPECT_THAT(input_error_of([] { check_tensor_parallel(3, 3, 5, 100, 3); }), HasSubstr("; use 1"));
}

}  // namespace
}  // namespace sl
