// Drawing when any number of tokens may be drawn: the row stays where it is (by now in L2) and is read again,
// each member of the team its share.
//
// The border of top-k (where counts reach k) and of top-p (where weights reach the nucleus) are found alike:
// by histograms over 11, 11 and 10 bits of the logits' order. Then sums of weights over chunks of 1,024
// tokens find the chunk of the token drawn, and sums over that chunk the token.
#pragma once

#include "kernels/cuda/sampling_few.cuh"

namespace sl::cuda::sampling {

constexpr int bins = 4 * threads;  // 2^11
constexpr int chunk_tokens = 1024;
static_assert(most_tokens <= int64_t{threads} * chunk_tokens && chunk_tokens == 2 * threads);

struct Many {
  alignas(16) uint32_t low[bins], high[bins];
  uint64_t sums[warps];
  uint64_t total;
  uint64_t above;  // the sum over all bins above the border's
  int bin;
  // Of the block that draws:
  uint64_t chunk_weight[threads];  // of the tokens above the border
  int chunk_equals[threads];       // tokens on the border
  uint64_t chunk_before;
  int chunk, equals_before;
};

// Where the sum over tokens, largest first, reaches what is wanted.
struct Border {
  uint32_t key = 0;
  uint64_t above = 0;   // the sum over larger keys
  uint64_t wanted = 0;  // 0: there is no border, all are kept
};

// The border among the tokens that are eligible(x), where the sums of measure(x), on top of `above`, reach
// wanted(sum over all eligible tokens).
template <int blocks, int width, typename Eligible, typename Measure, typename Wanted>
__device__ Border find_border(const Row& row, Eligible eligible, Measure measure, uint64_t above,
                              Wanted wanted, Many& many) {
  Border border;
  border.above = above;
  uint32_t known = 0;  // the bits of the border's key that are known
#pragma unroll 1
  for (int shift = 21; shift >= 0; shift -= shift == 21 ? 11 : 10) {
    const uint32_t mask = shift == 0 ? 1023 : 2047;
    for (int i = threadIdx.x; i < bins; i += threads) many.low[i] = many.high[i] = 0;
    __syncthreads();
    const auto count = [&](int, Group<width> g) {
      row.scale(g);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const uint32_t key = key_of(g.logit[i]);
        if (!eligible(g.logit[i]) || (key & known) != border.key) continue;
        const uint64_t size = measure(g.logit[i]);
        const uint32_t bin = (key >> shift) & mask;
        if (size != 0) add(many.low[bin], many.high[bin], size);
      }
    };
    for_each_of_slice<blocks, width>(row, count);
    Team<blocks>::sync();
    // A thread has 4 bins, the first threads the largest.
    uint64_t own[4] = {}, sum = 0;
    const int first = bins - 1 - 4 * static_cast<int>(threadIdx.x);
#pragma unroll 2
    for (int member = 0; member < blocks; ++member) {
      const Many* const theirs = Team<blocks>::of(&many, member);
      const uint4 low = *reinterpret_cast<const uint4*>(&theirs->low[first - 3]);
      const uint4 high = *reinterpret_cast<const uint4*>(&theirs->high[first - 3]);
      own[0] += static_cast<uint64_t>(high.w) << 32 | low.w;
      own[1] += static_cast<uint64_t>(high.z) << 32 | low.z;
      own[2] += static_cast<uint64_t>(high.y) << 32 | low.y;
      own[3] += static_cast<uint64_t>(high.x) << 32 | low.x;
    }
    for (const uint64_t x : own) sum += x;
    uint64_t before = sum_before(sum, many.sums);
    if (shift == 21) {
      if (threadIdx.x == threads - 1) many.total = before + sum;
      __syncthreads();
      border.wanted = wanted(many.total);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (border.above + before < border.wanted && border.wanted <= border.above + before + own[i]) {
        many.bin = first - i;
        many.above = border.above + before;
      }
      before += own[i];
    }
    Team<blocks>::sync();  // also: nobody reads the histograms any more
    border.key |= static_cast<uint32_t>(many.bin) << shift;
    border.above = many.above;
    known |= mask << shift;
  }
  return border;
}

// The token drawn, in one thread of member 0; -1 in all others. Not inlined: it would take registers from
// what runs for every row.
template <int blocks, int width>
__device__ __noinline__ int draw_from_many(Row row, float largest, float uniform, Near near, Many& many) {
  const auto weight = [largest](float x) { return weight_of(x, largest); };
  const auto near_border = [&](float x) {
    const float bin = distance_bin(x, largest), border_bin = static_cast<float>(near.bin);
    return !near.found || (bin >= border_bin && bin < border_bin + 1.0F);
  };
  Border border;
  if (row.top_k > 0) {
    const auto one = [](float) { return uint64_t{1}; };
    const auto k = [&](uint64_t) { return static_cast<uint64_t>(row.top_k); };
    border = find_border<blocks, width>(row, near_border, one, near.above, k, many);
    border.wanted = 0;  // all equals of the k-th stay
  }
  if (row.top_p < 1.0F && row.top_k > 0) {
    const uint32_t least = border.key;
    const auto kept = [least](float x) { return key_of(x) >= least; };
    const auto wanted = [&](uint64_t total) { return nucleus(row.top_p, total); };
    border = find_border<blocks, width>(row, kept, weight, 0, wanted, many);
  } else if (row.top_p < 1.0F) {
    const auto wanted = [&](uint64_t total) { return nucleus(row.top_p, near.found ? near.total : total); };
    border = find_border<blocks, width>(row, near_border, weight, near.above, wanted, many);
  }
  // So many of the tokens on the border are kept, the first ones.
  const uint64_t border_weight = weight_of(float_of(border.key), largest);
  int kept_equals = row.vocabulary;
  if (border.wanted > 0) {
    const uint64_t missing = border.wanted - border.above;
    kept_equals = static_cast<int>((missing + border_weight - 1) / border_weight);
  }

  Many* const drawing = Team<blocks>::of(&many, 0);
  const int chunks = (row.vocabulary + chunk_tokens - 1) / chunk_tokens;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int chunk = Team<blocks>::member() * warps + warp; chunk < chunks; chunk += blocks * warps) {
    uint64_t above = 0;
    int equals = 0;
    const int first = chunk * (chunk_tokens / width);
    const int end = min(first + chunk_tokens / width, row.vocabulary / width);
    const auto weigh = [&](int, Group<width> g) {
      row.scale(g);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const uint32_t key = key_of(g.logit[i]);
        if (key > border.key) above += weight(g.logit[i]);
        if (key == border.key) ++equals;
      }
    };
    for_each_group<width, 32>(row, first + lane, end, weigh);
    above = warp_sum(above);
    equals = __reduce_add_sync(all_lanes, equals);
    if (lane == 0) {
      drawing->chunk_weight[chunk] = above;
      drawing->chunk_equals[chunk] = equals;
    }
  }
  Team<blocks>::sync();
  if (Team<blocks>::member() != 0) return -1;

  // Thread i has chunk i; then, inside the chunk, tokens 2i and 2i + 1.
  const int me = threadIdx.x;
  const int equals = me < chunks ? many.chunk_equals[me] : 0;
  const int equals_before = static_cast<int>(sum_before(static_cast<uint64_t>(equals), many.sums));
  const auto on_border = [&](int before, int count) {
    return border_weight * static_cast<uint64_t>(max(0, min(count, kept_equals - before)));
  };
  const uint64_t own = (me < chunks ? many.chunk_weight[me] : 0) + on_border(equals_before, equals);
  uint64_t before = sum_before(own, many.sums);
  if (me == threads - 1) many.total = before + own;
  __syncthreads();
  const uint64_t at = drawn_at(uniform, many.total);
  if (before <= at && at < before + own) {
    many.chunk = me;
    many.chunk_before = before;
    many.equals_before = equals_before;
  }
  __syncthreads();
  const int first_token = many.chunk * chunk_tokens + 2 * me;
  uint64_t weights[2];
  int is_equal[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float x = first_token + i < row.vocabulary ? row.scaled(first_token + i) : -INFINITY;
    is_equal[i] = first_token + i < row.vocabulary && key_of(x) == border.key ? 1 : 0;
    weights[i] = key_of(x) > border.key ? weight(x) : 0;
  }
  const auto pair = static_cast<uint64_t>(is_equal[0] + is_equal[1]);
  const int equals_until = many.equals_before + static_cast<int>(sum_before(pair, many.sums));
  weights[0] += on_border(equals_until, is_equal[0]);
  weights[1] += on_border(equals_until + is_equal[0], is_equal[1]);
  before = many.chunk_before + sum_before(weights[0] + weights[1], many.sums);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (before <= at && at < before + weights[i]) return first_token + i;
    before += weights[i];
  }
  return -1;
}

}  // namespace sl::cuda::sampling
