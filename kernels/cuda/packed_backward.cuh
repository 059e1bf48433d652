// The gradient of packed attention on Hopper: what its two kernels share. With P the probabilities, made
// again from the scores and their log-sum-exp, and delta(i) = grad_out(i) . out(i):
//   grad_V = P^T grad_out,  dS = P * (grad_out V^T - delta),  grad_K = scale dS^T Q,  grad_Q = scale dS K.
// One kernel owns tiles of keys and goes through the queries (packed_backward_keys.cuh), the other owns tiles
// of queries and goes through the keys (packed_backward_queries.cuh). Both make S and grad_out V^T, so that 7
// products are done where 5 would be enough; in return nothing is summed in memory but for short sequences:
// no atomics, and the same bits every time.
//
// delta has no memory of its own: a kernel before them leaves it, as a float, in the first 4 bytes of the
// row's head in grad_qkv, where the kernel of the queries, which runs last, puts the gradient of that very
// row.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/packed_tiles.cuh"
#include "kernels/cuda/packed_warpgroup.cuh"

namespace sl::cuda {

struct PackedBackwardParameters {
  const int32_t* offsets;
  const float* log_sum_exp;
  bf16* grad_qkv;
  PackedQueue* queue;
  int64_t log_sum_exp_stride, grad_qkv_stride;
  int sequences, query_heads, key_heads;
  int section_bytes;  // of keys and values that a section of heads may read
  // Where tiles of keys are few, the heads of a group are shared out to `parts` pieces of work, and each
  // leaves its sums there: parts, rows, 2K, D. One part needs none.
  int parts;
  float* part_sums;
  int64_t rows;
  float scale;
};

#if SL_HOPPER

// What softmax left of row `row` for one head.
struct RowStatistics {
  float log_sum_exp;  // of base-2 exponents; infinite for rows that do not count: their probabilities are 0
  float delta;
};
template <int D>
__device__ __forceinline__ RowStatistics read_statistics(const PackedBackwardParameters& p, int64_t row,
                                                         int end, int head) {
  if (row >= end) return {INFINITY, 0.0F};
  return {p.log_sum_exp[row * p.log_sum_exp_stride + head] * 1.4426950408889634F,
          *reinterpret_cast<const float*>(p.grad_qkv + row * p.grad_qkv_stride + head * D)};
}

#endif  // SL_HOPPER

}  // namespace sl::cuda
