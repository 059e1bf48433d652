// What tests of numbers share: tolerances by one rule, random numbers from fixed seeds, gradients by finite
// differences.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "core/tensor.hpp"

namespace sl::test {

// ||actual - expected|| / ||expected||. Infinite when the sizes differ or anything is not finite; when
// `expected` is all zeros, 0 or infinite.
template <typename Actual, typename Expected>
double relative_error(const std::vector<Actual>& actual, const std::vector<Expected>& expected) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (actual.size() != expected.size()) return infinity;
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double a = static_cast<double>(actual[i]), e = static_cast<double>(expected[i]);
    difference += (a - e) * (a - e);
    norm += e * e;
  }
  if (!std::isfinite(difference) || !std::isfinite(norm)) return infinity;
  if (norm == 0.0) return difference == 0.0 ? 0.0 : infinity;
  return std::sqrt(difference / norm);
}

// The rule for the relative error of sums of n products of floats: rounding errors add up like a random walk.
inline double tolerance(int64_t n_terms) {
  constexpr double constant = 4.0;
  return constant * std::sqrt(static_cast<double>(n_terms)) * std::numeric_limits<float>::epsilon();
}

// The same where results are stored as `rounded_to`: 2^-8 for a rounding to bf16, twice what a number
// suffers. `roundings` counts those on the way too, as of a gradient that passes through stored
// probabilities.
inline double tolerance(int64_t n_terms, DType rounded_to, int roundings = 1) {
  return tolerance(n_terms) + (rounded_to == DType::bf16 ? roundings * 0x1p-8 : 0.0);
}

// Standard normal numbers, times `scale`.
inline std::vector<float> random_floats(int64_t n, uint32_t seed, float scale = 1.0F) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = scale * normal(generator);
  return values;
}

// Whole numbers from -4 to 4, whose sums and products floats hold exactly.
inline std::vector<float> small_integers(int64_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> uniform(-4, 4);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = static_cast<float>(uniform(generator));
  return values;
}

inline std::vector<double> in_double(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

// The gradient of a scalar function by central differences.
inline std::vector<double> finite_differences(
    const std::function<double(const std::vector<double>&)>& function, std::vector<double> at) {
  constexpr double step = 1e-5;
  std::vector<double> gradient(at.size());
  for (size_t i = 0; i < at.size(); ++i) {
    const double kept = at[i];
    at[i] = kept + step;
    const double above = function(at);
    at[i] = kept - step;
    gradient[i] = (above - function(at)) / (2.0 * step);
    at[i] = kept;
  }
  return gradient;
}

}  // namespace sl::test
