// The blocks that draw one row together: a thread block cluster of 1 to 8 blocks (one before sm_90), and the
// reductions of a block. Sums of weights are whole numbers, so that no result depends on the number of blocks
// or on the order of additions.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "kernels/cuda/common.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SL_CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define SL_CLUSTER(blocks)
#endif

namespace sl::cuda::sampling {

constexpr int threads = 512;  // of a block
constexpr int warps = threads / 32;
constexpr unsigned all_lanes = 0xffffffffU;

template <int blocks>
struct Team {
  static __device__ int member() {
    if constexpr (blocks > 1) {
#if __CUDA_ARCH__ >= 900
      return static_cast<int>(cooperative_groups::this_cluster().block_rank());
#endif
    }
    return 0;
  }
  // All threads of all blocks wait for each other; what they wrote is seen by all.
  static __device__ void sync() {
    if constexpr (blocks > 1) {
#if __CUDA_ARCH__ >= 900
      cooperative_groups::this_cluster().sync();
#endif
    } else {
      __syncthreads();
    }
  }
  // The same shared variable of another block. No block may end while others use its memory.
  template <typename T>
  static __device__ T* of(T* mine, int member) {
    if constexpr (blocks > 1) {
#if __CUDA_ARCH__ >= 900
      return cooperative_groups::this_cluster().map_shared_rank(mine, member);
#endif
    }
    return mine;
  }
};

__device__ inline uint64_t warp_sum(uint64_t x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(all_lanes, x, offset);
  return x;
}

// A 64-bit sum in two halves: shared memory adds only 32 bits in one instruction.
__device__ inline void add(uint32_t& low, uint32_t& high, uint64_t x) {
  const auto x_low = static_cast<uint32_t>(x);
  const uint32_t before = atomicAdd(&low, x_low);
  const uint32_t carry = before + x_low < before ? 1 : 0;
  const auto x_high = static_cast<uint32_t>(x >> 32) + carry;
  if (x_high != 0) atomicAdd(&high, x_high);
}

// The sum of x over the threads before this one. `warp_sums` is shared memory that no thread still uses.
__device__ inline uint64_t sum_before(uint64_t x, uint64_t (&warp_sums)[warps]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint64_t through = x;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t before = __shfl_up_sync(all_lanes, through, offset);
    if (lane >= offset) through += before;
  }
  if (lane == 31) warp_sums[warp] = through;
  __syncthreads();
  uint64_t before = through - x;
  for (int i = 0; i < warp; ++i) before += warp_sums[i];
  __syncthreads();
  return before;
}

}  // namespace sl::cuda::sampling
