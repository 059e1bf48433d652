// Drawing when few tokens can be drawn: they are gathered in a list of one block, where a thread compares its
// token with all others: no order, no sorting.
//
// A list needs a bound below which no token can be drawn. For a small top_k, every thread has kept the
// largest logit of its slice of the row: at least k logits reach the k-th largest of those, and hardly more
// do (k = 20, 512 slices of 297 tokens: 20.4 on average). Otherwise one more reading of the row counts or
// weighs the tokens near the largest by their distance from it.
#pragma once

#include "kernels/cuda/sampling_row.cuh"

namespace sl::cuda::sampling {

constexpr int slices_top_k = 128;  // for more, slices are too long
constexpr int most_few = threads;  // tokens in the list; those at the bound can be more when many are equal

struct Few {
  // Tokens by their distance from the largest logit: how many, or their weights.
  uint32_t low[threads], high[threads];
  uint32_t total_low, total_high;
  int bin;         // of the border; -1: farther away
  uint64_t above;  // the sum over nearer bins
  uint64_t sums[warps];
  int slices[threads];  // threads of this block whose slices have candidates
  int slice_count;
  // The list, of the block that draws. Logits are scaled. `count` may be more than there is room for.
  alignas(16) float logit[most_few];
  int token[most_few];
  int count;
  // Those of the list that top-k keeps.
  float kept_logit[most_few];
  int kept_token[most_few];
  uint64_t weight[most_few], nucleus_weight[most_few];
  int kept_count;
};

// A key that at least k keys of the block's threads reach: the k-th largest, or less when that is found
// sooner.
__device__ inline uint32_t kth_largest(uint32_t key, int k) {
  uint32_t bound = 0;
  for (uint32_t bit = 1U << 31; bit != 0; bit >>= 1) {
    const int reach = __syncthreads_count(key >= (bound | bit));
    if (reach >= k) bound |= bit;
    if (reach == k) break;
  }
  return bound;
}

// What is known of the tokens near the largest.
struct Near {
  bool found = false;
  float bound = 0.0F;  // a scaled logit that all tokens reach that can be drawn
  // By distance: the bin in which the k-th token is, or without top-k the end of the nucleus; the sum (of
  // counts, or weights) over nearer bins; and, without top-k, the weight of all tokens.
  int bin = -1;
  uint64_t above = 0, total = 0;
};

// 1/32 a bin; not less than `threads` when farther away.
constexpr float bins_of_one = 32.0F;
__device__ inline float distance_bin(float x, float largest) { return (largest - x) * bins_of_one; }

// Counts the tokens of the row when top-k is on, weighs them when it is off.
template <int blocks, int width>
__device__ Near bound_by_distance(const Row& row, float largest, Few& few) {
  const int me = threadIdx.x;
  few.low[me] = few.high[me] = 0;
  if (me == 0) {
    few.total_low = few.total_high = 0;
    few.bin = -1;
    few.above = 0;
  }
  __syncthreads();
  uint64_t sum = 0;
  const auto count = [&](int, Group<width> g) {
    row.scale(g);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const uint64_t size = row.top_k > 0 ? 1 : weight_of(g.logit[i], largest);
      sum += size;
      const float bin = distance_bin(g.logit[i], largest);
      if (bin < static_cast<float>(threads))
        add(few.low[static_cast<int>(bin)], few.high[static_cast<int>(bin)], size);
    }
  };
  for_each_of_slice<blocks, width>(row, count);
  sum = warp_sum(sum);
  if (me % 32 == 0) add(few.total_low, few.total_high, sum);
  Team<blocks>::sync();
  Near near;
  uint64_t own = 0;
  for (int member = 0; member < blocks; ++member) {
    const Few* const theirs = Team<blocks>::of(&few, member);
    own += static_cast<uint64_t>(theirs->high[me]) << 32 | theirs->low[me];
    near.total += static_cast<uint64_t>(theirs->total_high) << 32 | theirs->total_low;
  }
  const uint64_t wanted = row.top_k > 0 ? static_cast<uint64_t>(row.top_k) : nucleus(row.top_p, near.total);
  const uint64_t before = sum_before(own, few.sums);
  if (before < wanted && wanted <= before + own) {
    few.bin = me;
    few.above = before;
  }
  __syncthreads();
  near.bin = few.bin;
  near.above = few.above;
  near.found = near.bin >= 0;
  // Half a bin more than the end of the bin, so that rounding leaves nothing out.
  near.bound = largest - (static_cast<float>(near.bin) + 1.5F) / bins_of_one;
  return near;
}

// Puts the tokens whose scaled logits reach `bound` into the list of member 0. `largest` is of the slice of
// this thread, before scaling. The counts of `few` are 0.
template <int blocks, int width>
__device__ void gather(const Row& row, float largest, float bound, Few& few) {
  if (largest / row.temperature >= bound) few.slices[atomicAdd(&few.slice_count, 1)] = threadIdx.x;
  __syncthreads();
  Few* const list = Team<blocks>::of(&few, 0);
  if (few.slice_count * blocks > threads / 4 * 3) {
    // So many slices have more candidates than there is room for.
    if (threadIdx.x == 0) atomicAdd(&list->count, most_few + 1);
    return;
  }
  const int groups = row.vocabulary / width;
  const int slice_groups = (groups + Slice<blocks>::step - 1) / Slice<blocks>::step;
  for (int i = threadIdx.x; i < few.slice_count * slice_groups; i += threads) {
    const int slice = few.slices[i / slice_groups];
    const int group = Slice<blocks>::first(slice) + i % slice_groups * Slice<blocks>::step;
    if (group >= groups) continue;
    Group<width> g = row.load<width>(group);
    row.scale(g);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      if (g.logit[j] < bound) continue;
      const int at = atomicAdd(&list->count, 1);
      if (at >= most_few) continue;
      list->logit[at] = g.logit[j];
      list->token[at] = group * width + j;
    }
  }
}

// The token drawn from the list, in one thread; -1 in all others. For one block. row_total: the weight of all
// tokens, when top-k is off and top-p is not.
__device__ inline int draw_from_few(const Row& row, float largest, float uniform, uint64_t row_total,
                                    Few& few) {
  const int count = few.count, me = threadIdx.x;
  if (me >= count && me < (count + 3) / 4 * 4) few.logit[me] = -INFINITY;
  __syncthreads();
  // Top-k: fewer than k are larger. Equals of the k-th stay.
  if (me < count) {
    const float x = few.logit[me];
    int larger = 0;
    for (int i = 0; row.top_k > 0 && i < count; i += 4) {
      const float4 others = *reinterpret_cast<const float4*>(&few.logit[i]);
      larger +=
          (others.x > x ? 1 : 0) + (others.y > x ? 1 : 0) + (others.z > x ? 1 : 0) + (others.w > x ? 1 : 0);
    }
    if (row.top_k == 0 || larger < row.top_k) {
      const int at = atomicAdd(&few.kept_count, 1);
      few.kept_logit[at] = x;
      few.kept_token[at] = few.token[me];
      few.weight[at] = weight_of(x, largest);
    }
  }
  __syncthreads();
  const int kept = few.kept_count;
  const bool present = me < kept;
  const float x = present ? few.kept_logit[me] : 0.0F;
  const int token = present ? few.kept_token[me] : 0;
  // Top-p: those before it, larger or equal and of smaller id, do not yet reach the nucleus.
  if (present) {
    uint64_t total = 0, before = 0;
    for (int i = 0; i < kept; ++i) {
      const uint64_t weight = few.weight[i];
      total += weight;
      if (few.kept_logit[i] > x || (few.kept_logit[i] == x && few.kept_token[i] < token)) before += weight;
    }
    if (row.top_k == 0) total = row_total;
    few.nucleus_weight[me] = row.top_p >= 1.0F || before < nucleus(row.top_p, total) ? few.weight[me] : 0;
  }
  __syncthreads();
  if (!present) return -1;
  uint64_t total = 0, before = 0;
  for (int i = 0; i < kept; ++i) {
    total += few.nucleus_weight[i];
    if (few.kept_token[i] < token) before += few.nucleus_weight[i];
  }
  const uint64_t at = drawn_at(uniform, total);
  return before <= at && at < before + few.nucleus_weight[me] ? token : -1;
}

}  // namespace sl::cuda::sampling
