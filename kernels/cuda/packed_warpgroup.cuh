// What the Hopper kernels of packed attention share: going round the stages of a pipeline, exponentials,
// writing out a product of a warpgroup.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/packed_tiles.cuh"

namespace sl::cuda {

#if SL_HOPPER

// The block's shared memory, at a multiple of 1024 bytes as swizzled tiles need.
template <typename Shared>
__device__ __forceinline__ Shared& shared_memory() {
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  if (shared_address(shared_bytes) % 1024 != 0) __trap();
  return *reinterpret_cast<Shared*>(shared_bytes);
}

__device__ __forceinline__ PackedTile uniform(const PackedTile& tile) {
  return {uniform(tile.first), uniform(tile.end), uniform(tile.tile), uniform(tile.head)};
}

// Goes round the stages of a pipeline; `parity` is that of the "full" barrier of this round.
template <int stages>
struct StageCursor {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The four lanes that share rows exchange registers, so that lane l ends with word l of each: a 4 x 4
// transposition.
__device__ __forceinline__ void transpose_quad(uint32_t (&word)[4], int lane) {
  const bool odd = lane & 1, upper = lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFU, odd ? word[i] : word[i + 1], 1);
    (odd ? word[i] : word[i + 1]) = other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFU, upper ? word[i] : word[i + 2], 2);
    (upper ? word[i] : word[i + 2]) = other;
  }
}

// Row (of the warpgroup's 64) of d[0]; d[2] is 8 rows below.
__device__ __forceinline__ int product_row() { return threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4; }

// Writes a product of 64 rows and D columns as bf16: the rows before `rows`, times a factor for each of this
// thread's two. Lanes exchange columns first, so that each writes 16 bytes and four of them 64.
template <int D>
__device__ __forceinline__ void write_product(const float (&d)[D / 2], const float (&factor)[2], bf16* out,
                                              int64_t stride, int rows) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = product_row() + 8 * i;
    bf16* to = out + row * stride + lane % 4 * 8;
#pragma unroll
    for (int j = 0; j < D / 32; ++j) {
      uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int at = (4 * j + w) * 4 + 2 * i;
        words[w] = pack(d[at] * factor[i], d[at + 1] * factor[i]);
      }
      transpose_quad(words, lane);
      if (row < rows)
        *reinterpret_cast<uint4*>(to + j * 32) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

#endif  // SL_HOPPER

}  // namespace sl::cuda
