#include "train/packing.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"

namespace sl {
namespace {

using ::testing::ElementsAre;

const std::vector<TrainingRow> rows = {
    {.tokens = {10, 11, 12, 13}, .mask = {0, 0, 1, 1}},
    {.tokens = {20, 21, 22}, .mask = {1, 1, 0}},  // nothing predicts the first token
    {.tokens = {30, 31}, .mask = {0, 0}},
    {.tokens = {40, 41, 42, 43, 44, 45}, .mask = {0, 1, 0, 0, 0, 1}},
    {.tokens = {50}, .mask = {1}},
};

TEST(Packing, CountsWhatIsLearnt) {
  EXPECT_EQ(trained_tokens(rows[0], 100), 2);
  EXPECT_EQ(trained_tokens(rows[0], 3), 1);
  EXPECT_EQ(trained_tokens(rows[0], 2), 0);
  EXPECT_EQ(trained_tokens(rows[1], 100), 1);
  EXPECT_EQ(trained_tokens(rows[4], 100), 0);
  EXPECT_EQ(packed_rows(rows[0], 100), 3);
  EXPECT_EQ(packed_rows(rows[0], 3), 2);
  EXPECT_EQ(packed_rows(rows[0], 2), 0);
  EXPECT_EQ(packed_rows(rows[2], 100), 0);
}

TEST(Packing, PutsSequencesBackToBack) {
  const std::vector<int64_t> chosen = {1, 2, 0, 4};
  const std::vector<PackedBatch> batches = pack(rows, chosen, 100, 5, 0.25F);
  ASSERT_EQ(batches.size(), 1U);
  EXPECT_THAT(batches[0].tokens, ElementsAre(20, 21, 10, 11, 12));
  EXPECT_THAT(batches[0].targets, ElementsAre(21, -1, -1, 12, 13));
  EXPECT_THAT(batches[0].weights, ElementsAre(0.25F, 0.0F, 0.0F, 0.25F, 0.25F));
  EXPECT_THAT(batches[0].offsets, ElementsAre(0, 2, 5));
}

TEST(Packing, StartsABatchWhenOneIsFullAndGivesALongSequenceItsOwn) {
  const std::vector<int64_t> chosen = {0, 1, 3, 1};
  const std::vector<PackedBatch> batches = pack(rows, chosen, 100, 4, 1.0F);
  ASSERT_EQ(batches.size(), 4U);
  EXPECT_THAT(batches[0].tokens, ElementsAre(10, 11, 12));
  EXPECT_THAT(batches[1].tokens, ElementsAre(20, 21));
  EXPECT_THAT(batches[2].tokens, ElementsAre(40, 41, 42, 43, 44));
  EXPECT_THAT(batches[3].tokens, ElementsAre(20, 21));
}

TEST(Packing, CutsOff) {
  const std::vector<int64_t> chosen = {3};
  const std::vector<PackedBatch> batches = pack(rows, chosen, 3, 100, 1.0F);
  ASSERT_EQ(batches.size(), 1U);
  EXPECT_THAT(batches[0].tokens, ElementsAre(40, 41));
  EXPECT_THAT(batches[0].targets, ElementsAre(41, -1));
}

TEST(Packing, GivesNoBatchWithoutAnythingToLearn) {
  const std::vector<int64_t> chosen = {2, 4};
  EXPECT_TRUE(pack(rows, chosen, 100, 100, 1.0F).empty());
}

TEST(Packing, RefusesAMaskOfAnotherLength) {
  const TrainingRow bad = {.tokens = {1, 2, 3}, .mask = {1, 1}};
  EXPECT_THROW(trained_tokens(bad, 100), BugError);
}

}  // namespace
}  // namespace sl
