// bfloat16: the upper half of a float. What weights, activations and KV pages are stored as on a GPU.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace sl {

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

struct Bf16 {
  uint16_t bits;
  Bf16() = default;
  explicit Bf16(float value) : bits(float_to_bf16(value)) {}
  explicit operator float() const { return bf16_to_float(bits); }
  explicit operator double() const { return static_cast<double>(bf16_to_float(bits)); }
};
static_assert(sizeof(Bf16) == 2);

}  // namespace sl
