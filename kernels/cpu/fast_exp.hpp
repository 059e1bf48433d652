// exp for whole vectors: the compiler may not call a vector exp without -ffast-math, and a scalar one would
// take longer than the products around it in softmax and silu.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/simd.hpp"

namespace sl {

// exp(x) to 2 units in the last place. Below -87.33 (where floats become denormal) 0; above 88.37 the value
// there, 2.4e38, so that it never overflows; NaN stays NaN.
inline Lanes fast_exp(const Lanes& x) {
  using Ints [[gnu::vector_size(sizeof(Lanes))]] = int32_t;
  constexpr float lowest = -87.33F, highest = 88.37F;
  // x = n ln 2 + r with |r| <= ln 2 / 2: adding 1.5 * 2^23 rounds to an integer, which then sits in the low
  // bits. ln 2 is split so that n times its first part is exact.
  constexpr float rounder = 12582912.0F;
  const Lanes all = {};
  const Lanes below = x < lowest ? all + lowest : x;
  const Lanes clamped = below > highest ? all + highest : below;
  const Lanes shifted = clamped * 1.44269504F + rounder;
  const Lanes n = shifted - rounder;
  const Lanes r = (clamped - n * 0.693359375F) - n * -2.12194440e-4F;
  // Minimax polynomial of (exp(r) - 1 - r) / r^2 (Cephes, expf).
  Lanes p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  Ints exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent + 127) << 23;
  Lanes power;
  std::memcpy(&power, &exponent, sizeof power);
  return x < lowest ? all : p * power;
}

// values(i) = exp(values(i) - shift) for i < n; returns their sum, in an order that depends on n alone.
inline float exp_in_place(float* values, int64_t n, float shift) {
  Lanes total = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const Lanes e = fast_exp(load(values + i) - shift);
    store(values + i, e);
    total += e;
  }
  float result = sum(total);
  if (i < n) {
    float tail[lanes];
    store(tail, fast_exp(load_part(values + i, n - i) - shift));
    for (int64_t j = i; j < n; ++j) {
      values[j] = tail[j - i];
      result += tail[j - i];
    }
  }
  return result;
}

// The sum of exp(values(i) - shift), across vectors in double.
inline double sum_of_exp(const float* values, int64_t n, float shift) {
  double total = 0.0;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) total += static_cast<double>(sum(fast_exp(load(values + i) - shift)));
  for (; i < n; ++i) total += std::exp(static_cast<double>(values[i] - shift));
  return total;
}

// The largest of n numbers; -infinity when there is none. Not as an OpenMP reduction: clang's begins with the
// smallest finite number.
inline float largest_of(const float* values, int64_t n) {
  float largest = -std::numeric_limits<float>::infinity();
  Lanes of_lane = all_lanes(largest);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const Lanes next = load(values + i);
    of_lane = next > of_lane ? next : of_lane;
  }
  for (int lane = 0; lane < lanes; ++lane) largest = std::max(largest, of_lane[lane]);
  for (; i < n; ++i) largest = std::max(largest, values[i]);
  return largest;
}

}  // namespace sl
