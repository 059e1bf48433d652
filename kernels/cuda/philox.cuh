// Philox4x32-10 on the device: the same draws as core/rng.hpp gives on the host.
#pragma once

#include <cstdint>

namespace sl::cuda {

__device__ inline uint4 philox4x32(uint4 counter, uint2 key) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t low0 = 0xD2511F53U * counter.x, high0 = __umulhi(0xD2511F53U, counter.x);
    const uint32_t low1 = 0xCD9E8D57U * counter.z, high1 = __umulhi(0xCD9E8D57U, counter.z);
    counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key.x += 0x9E3779B9U;
    key.y += 0xBB67AE85U;
  }
  return counter;
}

// The block of four draws at `position` of a stream.
__device__ inline uint4 philox_block(uint64_t stream, uint64_t position) {
  return philox4x32(
      make_uint4(static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0U, 0U),
      make_uint2(static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)));
}

// Uniform in [0, 1) from the upper 24 bits of a draw.
__device__ inline float uniform_of(uint32_t draw) { return static_cast<float>(draw >> 8) * 0x1.0p-24F; }

// uniform_at() of core/rng.hpp.
__device__ inline float uniform_at(uint64_t stream, uint64_t position) {
  return uniform_of(philox_block(stream, position).x);
}

}  // namespace sl::cuda
