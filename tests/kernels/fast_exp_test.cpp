// The exponential of the host's operations.
#include "kernels/cpu/fast_exp.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace sl::test {
namespace {

TEST(FastExp, IsWithinTwoUnitsInTheLastPlace) {
  std::vector<float> inputs;
  for (int i = 0; i <= 1000000; ++i) inputs.push_back(-87.3F + 175.6F * static_cast<float>(i) / 1e6F);
  for (const float x : {0.0F, -0.0F, 1e-30F, -1e-30F, 0.34657359F, -0.34657359F}) inputs.push_back(x);
  double worst = 0.0;
  for (size_t i = 0; i < inputs.size(); i += lanes) {
    const size_t n = std::min<size_t>(lanes, inputs.size() - i);
    float results[lanes];
    store(results, fast_exp(load_part(inputs.data() + i, static_cast<int64_t>(n == lanes ? lanes : n))));
    for (size_t j = 0; j < n; ++j) {
      const double exact = std::exp(static_cast<double>(inputs[i + j]));
      const float nearest = static_cast<float>(exact);
      const double unit =
          static_cast<double>(std::nextafter(nearest, INFINITY)) - static_cast<double>(nearest);
      worst = std::max(worst, std::abs(static_cast<double>(results[j]) - exact) / unit);
    }
  }
  EXPECT_LE(worst, 2.0);
  EXPECT_GT(worst, 0.0);
}

TEST(FastExp, HandlesTheEdges) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float inputs[] = {-infinity, infinity, NAN, 0.0F};
  float results[lanes];
  store(results, fast_exp(load_part(inputs, lanes == 4 ? 3 : 4)));
  EXPECT_EQ(results[0], 0.0F);
  EXPECT_GT(results[1], 2e38F);
  EXPECT_TRUE(std::isfinite(results[1]));
  EXPECT_TRUE(std::isnan(results[2]));
  EXPECT_EQ(results[3], 1.0F);
}

}  // namespace
}  // namespace sl::test
