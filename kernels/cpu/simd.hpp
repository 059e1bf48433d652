// Vectors of the machine's own width, for loops whose order of summation is part of the contract: the
// compiler may not reassociate float sums, so these say by themselves which partial sums there are.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace sl {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

using Lanes [[gnu::vector_size(lanes * sizeof(float))]] = float;

inline Lanes load(const float* from) {
  Lanes to;
  std::memcpy(&to, from, sizeof to);
  return to;
}

// The first n < lanes numbers, zeros after them.
inline Lanes load_part(const float* from, int64_t n) {
  Lanes to = {};
  std::memcpy(&to, from, static_cast<size_t>(n) * sizeof(float));
  return to;
}

inline void store(float* to, const Lanes& from) { std::memcpy(to, &from, sizeof from); }

// sum += a * b, with one rounding wherever the processor can. Said explicitly: left to itself, the compiler
// may fuse the two in one tile and not in another, and then bits depend on the tile.
inline void multiply_add(Lanes& sum, const Lanes& a, const Lanes& b) {
#if defined(__AVX512F__)
  sum = _mm512_fmadd_ps(a, b, sum);
#elif defined(__FMA__)
  sum = _mm256_fmadd_ps(a, b, sum);
#else
  sum += a * b;
#endif
}
inline void multiply_add(float& sum, float a, float b) {
#if defined(__FMA__)
  sum = __builtin_fmaf(a, b, sum);
#else
  sum += a * b;
#endif
}

inline Lanes all_lanes(float value) { return value - Lanes{}; }

// Halves are added to each other until one number is left.
inline float sum(const Lanes& values) {
  using Four [[gnu::vector_size(16)]] = float;
  Four four;
  if constexpr (lanes == 4) {
    std::memcpy(&four, &values, sizeof four);
  } else {
    using Half [[gnu::vector_size(sizeof(Lanes) / 2)]] = float;
    Half halves[2];
    std::memcpy(halves, &values, sizeof values);
    halves[0] += halves[1];
    if constexpr (lanes == 8) {
      std::memcpy(&four, halves, sizeof four);
    } else {
      Four quarters[2];
      std::memcpy(quarters, halves, sizeof quarters);
      four = quarters[0] + quarters[1];
    }
  }
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// out[i] = sum(values[i]), by the same additions.
template <int N>
void sum_each(const Lanes (&values)[N], float* out) {
  for (int i = 0; i < N; ++i) out[i] = sum(values[i]);
}

#if defined(__AVX512F__)
// Four sums at once: halves and quarters of different vectors share an addition.
template <>
inline void sum_each<4>(const Lanes (&values)[4], float* out) {
  Lanes pairs[2];
  for (int i = 0; i < 2; ++i) {
    const Lanes &a = values[2 * i], &b = values[2 * i + 1];
    pairs[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  const Lanes quarters =
      __builtin_shufflevector(pairs[0], pairs[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
      __builtin_shufflevector(pairs[0], pairs[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  const Lanes halves = quarters + __builtin_shufflevector(quarters, quarters, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11,
                                                          8, 9, 14, 15, 12, 13);
  const Lanes whole =
      halves + __builtin_shufflevector(halves, halves, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  for (int i = 0; i < 4; ++i) out[i] = whole[4 * i];
}
#endif

}  // namespace sl
