#include "train/schedule.hpp"

#include <gtest/gtest.h>

#include <array>

namespace sl {
namespace {

// Recorded from the expression of get_cosine_schedule_with_warmup with 3 of 12 steps of warm-up, in Python.
TEST(Schedule, IsTransformersCosineWithWarmup) {
  constexpr std::array<double, 13> recorded = {0.0,
                                               0.3333333333333333,
                                               0.6666666666666666,
                                               1.0,
                                               0.9698463103929542,
                                               0.883022221559489,
                                               0.75,
                                               0.5868240888334653,
                                               0.41317591116653485,
                                               0.2500000000000001,
                                               0.11697777844051105,
                                               0.03015368960704584,
                                               0.0};
  for (size_t step = 0; step < recorded.size(); ++step) {
    EXPECT_NEAR(cosine_with_warmup(static_cast<int64_t>(step), 3, 12), recorded[step], 1e-15) << step;
  }
}

TEST(Schedule, StartsAtFullRateWithoutWarmup) {
  EXPECT_EQ(cosine_with_warmup(0, 0, 4), 1.0);
  EXPECT_NEAR(cosine_with_warmup(2, 0, 4), 0.5, 1e-15);
}

TEST(Schedule, StaysFiniteWhenAllStepsWarmUp) {
  EXPECT_EQ(cosine_with_warmup(1, 2, 2), 0.5);
  EXPECT_EQ(cosine_with_warmup(0, 1, 1), 0.0);
}

TEST(Schedule, RoundsTheStepsOfWarmupUp) {
  EXPECT_EQ(warmup_steps(20, 0.1), 2);
  EXPECT_EQ(warmup_steps(21, 0.1), 3);
  EXPECT_EQ(warmup_steps(5, 0.0), 0);
  EXPECT_EQ(warmup_steps(1, 0.1), 1);
}

}  // namespace
}  // namespace sl
