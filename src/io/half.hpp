// Conversions between float32 and the 16-bit formats of weight files.
#pragma once

#include <bit>
#include <cstdint>

#include "core/bf16.hpp"

namespace sl {

// _Float16 is IEEE binary16 on every processor we build for; the compiler uses F16C where it may.
inline float half_to_float(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
inline uint16_t float_to_half(float value) { return std::bit_cast<uint16_t>(static_cast<_Float16>(value)); }

}  // namespace sl
