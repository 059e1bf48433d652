// The same attention for every shape and storage type: a block for each row and query head, a warp for every
// fourth token. Tests and small models only.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/paged_mma.cuh"

namespace sl::cuda::paged {

constexpr int plain_warps = 4;
constexpr int plain_head_dim = 256;  // at most

template <typename T>
struct PlainArguments {
  const T* qkv;
  int64_t qkv_stride;
  const T* key_pages;
  const T* value_pages;
  const int* query_offsets;
  const int* context_lengths;
  const int* page_tables;
  int64_t table_stride;
  T* out;
  int64_t out_stride;
  int64_t query_heads, key_heads, head_dim, page_tokens;
  int sequences;
  float scale;
};

// How many tokens the row sees; 0 when it belongs to no sequence.
__device__ inline int find_sequence(const int* offsets, const int* lengths, int sequences, int row,
                                    int* sequence) {
  int low = 0, high = sequences;  // the first sequence that ends after the row is in low .. high
  while (low < high) {
    const int middle = (low + high) / 2;
    if (offsets[middle + 1] > row) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  *sequence = low;
  return low == sequences ? 0 : max(0, lengths[low] - (offsets[low + 1] - row) + 1);
}

template <typename T>
__global__ void __launch_bounds__(32 * plain_warps) plain_kernel(const PlainArguments<T> a) {
  constexpr int share = plain_head_dim / 32;  // elements of a lane
  __shared__ float sums[plain_warps][plain_head_dim];
  __shared__ float2 stats[plain_warps];
  wait_for_previous();
  start_next();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x, head = blockIdx.y, kv_head = head / (a.query_heads / a.key_heads);
  int sequence = 0;
  const int visible =
      find_sequence(a.query_offsets, a.context_lengths, a.sequences, static_cast<int>(row), &sequence);

  float query[share], sum[share] = {}, largest = -INFINITY, total = 0.0F;
  for (int i = 0; i < share; ++i) {
    const int d = lane + 32 * i;
    query[i] = d < a.head_dim ? to_float(a.qkv[row * a.qkv_stride + head * a.head_dim + d]) : 0.0F;
  }
  for (int token = warp; token < visible; token += plain_warps) {
    const int64_t page = a.page_tables[sequence * a.table_stride + token / a.page_tokens];
    const int64_t at =
        ((page * a.key_heads + kv_head) * a.page_tokens + token % a.page_tokens) * a.head_dim + lane;
    float score = 0.0F;
    for (int i = 0; i < share && lane + 32 * i < a.head_dim; ++i) {
      score += query[i] * to_float(a.key_pages[at + 32 * i]);
    }
    score = warp_sum(score) * a.scale;
    const float before = largest;
    largest = fmaxf(largest, score);
    const float factor = __expf(before - largest), weight = __expf(score - largest);
    total = total * factor + weight;
    for (int i = 0; i < share && lane + 32 * i < a.head_dim; ++i) {
      sum[i] = sum[i] * factor + weight * to_float(a.value_pages[at + 32 * i]);
    }
  }
  for (int i = 0; i < share; ++i) sums[warp][lane + 32 * i] = sum[i];
  if (lane == 0) stats[warp] = make_float2(largest, total);
  __syncthreads();

  for (int w = 0; w < plain_warps; ++w) largest = fmaxf(largest, stats[w].x);
  float factors[plain_warps];
  total = 0.0F;
  for (int w = 0; w < plain_warps; ++w) {
    factors[w] = stats[w].x == -INFINITY ? 0.0F : __expf(stats[w].x - largest);
    total += factors[w] * stats[w].y;
  }
  const float inverse = total == 0.0F ? 0.0F : 1.0F / total;
  for (int d = threadIdx.x; d < a.head_dim; d += 32 * plain_warps) {
    float x = 0.0F;
    for (int w = 0; w < plain_warps; ++w) x += factors[w] * sums[w][d];
    a.out[row * a.out_stride + head * a.head_dim + d] = from_float<T>(x * inverse);
  }
}

}  // namespace sl::cuda::paged
