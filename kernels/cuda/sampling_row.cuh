// One row of logits as the sampling kernel sees it: how it is shared out and read, penalty and temperature,
// the order of tokens, weights.
#pragma once

#include <cstdint>

#include "kernels/cuda/sampling_team.cuh"

namespace sl::cuda::sampling {

// The logits are read in groups of `width` tokens: 4, or 1 where rows do not consist of 16-byte pieces.
template <int width>
struct Group {
  float logit[width];
  uint32_t seen;  // bit i: token i of the group was seen
};

struct Row {
  float* logits;
  int vocabulary;
  const uint32_t* seen;  // the bitmap of this row; null: no penalty
  float penalty;
  float temperature;  // above 0
  int top_k;          // 0: off
  float top_p;        // from 1: off

  // As the model left it.
  template <int width>
  __device__ Group<width> load(int group) const {
    Group<width> g;
    const int token = group * width;
    if constexpr (width == 4) {
      const float4 x = *reinterpret_cast<const float4*>(logits + token);
      g.logit[0] = x.x, g.logit[1] = x.y, g.logit[2] = x.z, g.logit[3] = x.w;
    } else {
      g.logit[0] = logits[token];
    }
    g.seen = seen == nullptr ? 0 : (seen[token / 32] >> (token % 32)) & ((1U << width) - 1);
    return g;
  }

  template <int width>
  __device__ void penalize(Group<width>& g) const {
    if (g.seen == 0) return;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float x = g.logit[i];
      if ((g.seen >> i & 1) != 0) g.logit[i] = x > 0.0F ? x / penalty : x * penalty;
    }
  }

  // Penalty and temperature.
  template <int width>
  __device__ void scale(Group<width>& g) const {
    penalize(g);
#pragma unroll
    for (int i = 0; i < width; ++i) g.logit[i] /= temperature;
  }
  __device__ float scaled(int token) const {
    Group<1> g = load<1>(token);
    scale(g);
    return g.logit[0];
  }
};

// The groups of a thread: its slice. Warps of all blocks take turns, 32 groups at a time, so that tokens that
// are alike, which often have neighbouring ids, are spread over the blocks.
template <int blocks>
struct Slice {
  static constexpr int step = blocks * threads;
  static __device__ int first(int thread) {
    return (thread / 32 * blocks + Team<blocks>::member()) * 32 + thread % 32;
  }
  static __device__ bool is_ours(int group) { return group / 32 % blocks == Team<blocks>::member(); }
};

// Calls f(group, Group) for the groups first, first + step, ... before `end`, with `ahead` loads under way.
template <int width, int step, int ahead = 4, typename F>
__device__ void for_each_group(const Row& row, int first, int end, F&& f) {
#pragma unroll 1
  for (int begin = first; begin < end; begin += ahead * step) {
    Group<width> g[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (begin + i * step < end) g[i] = row.load<width>(begin + i * step);
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (begin + i * step < end) f(begin + i * step, g[i]);
    }
  }
}

template <int blocks, int width, typename F>
__device__ void for_each_of_slice(const Row& row, F&& f) {
  for_each_group<width, Slice<blocks>::step>(row, Slice<blocks>::first(threadIdx.x), row.vocabulary / width,
                                             f);
}

// Whole numbers in the order of the floats; the two zeros are equal, NaN is not asked for.
__device__ inline uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0F);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffU : 0x80000000U);
}
__device__ inline float float_of(uint32_t key) {
  return __uint_as_float(key ^ ((key >> 31) != 0 ? 0x80000000U : 0xffffffffU));
}

// The larger; NaN if either is.
__device__ inline float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// exp(x - largest) in units of 2^-44: sums over a vocabulary fit 64 bits, and what is smaller is never drawn.
constexpr int64_t most_tokens = int64_t{1} << 19;
__device__ inline uint64_t weight_of(float x, float largest) {
  constexpr float lowest = -31.0F;  // exp(-31) is 0.6 units
  const float distance = x - largest;
  return distance < lowest ? 0 : __float2ull_rn(expf(distance) * 0x1p44F);
}

// A nucleus is the fewest first tokens whose weights reach this.
__device__ inline uint64_t nucleus(float top_p, uint64_t total) {
  const double wanted = ceil(static_cast<double>(top_p) * static_cast<double>(total));
  return wanted >= 1.0 ? static_cast<uint64_t>(wanted) : 1;
}

// The token drawn is the first whose cumulated weight is above this: the whole part of uniform * total, where
// uniform has 24 bits.
__device__ inline uint64_t drawn_at(float uniform, uint64_t total) {
  const auto bits = static_cast<uint64_t>(uniform * 0x1p24F);
  return (__umul64hi(total, bits) << 40) | ((total * bits) >> 24);
}

}  // namespace sl::cuda::sampling
