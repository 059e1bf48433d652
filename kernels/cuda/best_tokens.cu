// The best tokens of a row and their log-probabilities, for beam search: a block a row.
//
// The row is read for its largest logit, for the sum of exponentials, for every thread's best score, and for
// the tokens that may be among the best: the N-th largest of the threads' best scores is reached by N tokens
// at least, and hardly more reach it. Those are put in order by comparing each with all others. When more
// reach it than there is room for, since many are equal, the N-th best score is found bit by bit instead,
// with a reading of the row for every bit.
#include <algorithm>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/sampling_few.cuh"

namespace sl {
namespace cuda::best_tokens {

using namespace sampling;

struct Arguments {
  float* logits;
  int64_t stride;
  int vocabulary;
  const uint32_t* seen;
  int64_t seen_stride, slot_count;
  const int32_t* slots;
  const float* penalty;
  const int32_t* banned;
  int banned_count;
  const int32_t* ban;
  int wanted;
  int32_t* tokens;
  int64_t tokens_stride;
  float* scores;
  int64_t scores_stride;
};

constexpr int most_listed = 2 * threads;
static_assert(most_best_tokens <= threads);

struct Shared {
  double sums[warps];
  float largest[warps];
  int counts[warps];
  int listed;  // may be more than there is room for
  float score[most_listed];
  int token[most_listed];
};

// Of the values of all threads; every thread gets it.
__device__ inline float block_max(float x, float (&of_warps)[warps]) {
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  float largest = of_warps[0];
  for (int i = 1; i < warps; ++i) largest = fmaxf(largest, of_warps[i]);
  return largest;
}

__device__ inline double block_sum(double x, double (&of_warps)[warps]) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(all_lanes, x, offset);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0.0;
  for (int i = 0; i < warps; ++i) sum += of_warps[i];
  return sum;
}

// A row whose logits are turned into scores as they are read.
struct ScoredRow {
  Row row;
  float log_sum;

  template <int width>
  __device__ float score(const Group<width>& g, int i) const {
    const float x = g.logit[i] - log_sum;
    return (g.seen >> i & 1) != 0 ? x * row.penalty : x;
  }
  // Calls f(token, score) for the tokens of this thread.
  template <int width, typename F>
  __device__ void for_each(F&& f) const {
    for_each_of_slice<1, width>(row, [&](int group, const Group<width>& g) {
#pragma unroll
      for (int i = 0; i < width; ++i) f(group * width + i, score(g, i));
    });
  }
};

__device__ inline void append(Shared& shared, int token, float score) {
  const int at = atomicAdd(&shared.listed, 1);
  if (at >= most_listed) return;
  shared.token[at] = token;
  shared.score[at] = score;
}

// Lists exactly the `wanted` best: those above the worst of them, then its equals in order of id.
template <int width>
__device__ void list_exactly(const ScoredRow& scored, int wanted, Shared& shared) {
  const int me = threadIdx.x, warp = me / 32;
  const auto sum_over_block = [&](int count) {
    count = __reduce_add_sync(all_lanes, count);
    __syncthreads();  // the counts before have been read
    if (me % 32 == 0) shared.counts[warp] = count;
    __syncthreads();
    int sum = 0;
    for (int i = 0; i < warps; ++i) sum += shared.counts[i];
    return sum;
  };
  uint32_t worst = 0;
  for (uint32_t bit = 1U << 31; bit != 0; bit >>= 1) {
    int reach = 0;
    scored.for_each<width>([&](int, float score) { reach += key_of(score) >= (worst | bit) ? 1 : 0; });
    if (sum_over_block(reach) >= wanted) worst |= bit;
  }
  __syncthreads();
  if (me == 0) shared.listed = 0;
  __syncthreads();
  scored.for_each<width>([&](int token, float score) {
    if (key_of(score) > worst) append(shared, token, score);
  });
  __syncthreads();
  int listed = shared.listed;
  for (int begin = 0; begin < scored.row.vocabulary && listed < wanted; begin += threads) {
    const int token = begin + me;
    float score = 0.0F;
    bool equal = false;
    if (token < scored.row.vocabulary) {
      score = scored.score(scored.row.load<1>(token), 0);
      equal = key_of(score) == worst;
    }
    const uint32_t equals = __ballot_sync(all_lanes, equal);
    const int all = sum_over_block(equal ? 1 : 0);
    int at = listed + __popc(equals & ((1U << me % 32) - 1));
    for (int i = 0; i < warp; ++i) at += shared.counts[i];
    if (equal && at < wanted) {
      shared.token[at] = token;
      shared.score[at] = score;
    }
    listed += all;
  }
  __syncthreads();
  if (me == 0) shared.listed = wanted;
  __syncthreads();
}

template <int width>
__global__ void __launch_bounds__(threads) best_tokens(const Arguments a) {
  __shared__ Shared shared;
  const int me = threadIdx.x, index = static_cast<int>(blockIdx.x);
  if (me == 0) shared.listed = 0;
  wait_for_previous();
  start_next();

  const int64_t slot = a.slots[index];
  const float penalty = a.penalty[index];
  const bool penalized = slot >= 0 && slot < a.slot_count && penalty != 1.0F;
  ScoredRow scored{.row = {.logits = a.logits + index * a.stride,
                           .vocabulary = a.vocabulary,
                           .seen = penalized ? a.seen + slot * a.seen_stride : nullptr,
                           .penalty = penalty,
                           .temperature = 1.0F,
                           .top_k = 0,
                           .top_p = 1.0F},
                   .log_sum = 0.0F};
  float largest = -INFINITY;
  for_each_of_slice<1, width>(scored.row, [&](int, const Group<width>& g) {
#pragma unroll
    for (int i = 0; i < width; ++i) largest = max_or_nan(largest, g.logit[i]);
  });
  const bool is_nan = __syncthreads_or(isnan(largest) ? 1 : 0) != 0;
  largest = block_max(largest, shared.largest);
  int32_t* const tokens = a.tokens + index * a.tokens_stride;
  float* const scores = a.scores + index * a.scores_stride;
  if (is_nan || !(fabsf(largest) < INFINITY) || !(penalty > 0.0F)) {
    if (me < a.wanted) {
      tokens[me] = -1;
      scores[me] = -INFINITY;
    }
    return;
  }
  double sum = 0.0;
  for_each_of_slice<1, width>(scored.row, [&](int, const Group<width>& g) {
#pragma unroll
    for (int i = 0; i < width; ++i) sum += static_cast<double>(expf(g.logit[i] - largest));
  });
  sum = block_sum(sum, shared.sums);
  scored.log_sum = static_cast<float>(static_cast<double>(largest) + log(sum));

  // All have read the row: what is banned counted in the sum.
  if (a.ban[index] != 0) {
    for (int i = me; i < a.banned_count; i += threads) {
      const int token = a.banned[i];
      if (token >= 0 && token < a.vocabulary) scored.row.logits[token] = -INFINITY;
    }
  }
  __syncthreads();

  uint32_t best = 0;  // below the key of any score
  scored.for_each<width>([&](int, float score) { best = max(best, key_of(score)); });
  const uint32_t bound = kth_largest(best, a.wanted);
  if (best >= bound) {
    scored.for_each<width>([&](int token, float score) {
      if (key_of(score) >= bound) append(shared, token, score);
    });
  }
  __syncthreads();
  if (shared.listed > most_listed) list_exactly<width>(scored, a.wanted, shared);

  const int listed = shared.listed;
  for (int i = me; i < listed; i += threads) {
    const float score = shared.score[i];
    const int token = shared.token[i];
    int before = 0;
    for (int j = 0; j < listed; ++j) {
      const float other = shared.score[j];
      before += other > score || (other == score && shared.token[j] < token) ? 1 : 0;
    }
    if (before >= a.wanted) continue;
    tokens[before] = token;
    scores[before] = score;
  }
}

}  // namespace cuda::best_tokens

template <>
void launch<Device::cuda>(const Context& context, const BestTokens& op) {
  const Dims dims = match_shapes("BestTokens", context.device,
                                 {{"logits", op.logits, "RV"},
                                  {"seen", op.seen, "SW", DType::u32},
                                  {"slots", op.slots, "R", DType::i32},
                                  {"penalty", op.penalty, "R"},
                                  {"banned", op.banned, "B", DType::i32},
                                  {"ban", op.ban, "R", DType::i32},
                                  {"tokens", op.tokens, "RN", DType::i32},
                                  {"scores", op.scores, "RN"}},
                                 {{'W', (op.logits.columns() + 31) / 32}});
  require(dims['N'] > 0 && dims['N'] <= std::min(dims['V'], most_best_tokens),
          "BestTokens: no tokens wanted, or more than there are");
  require(dims['V'] <= cuda::sampling::most_tokens, "BestTokens: a vocabulary of more than 2^19 tokens");
  const cuda::best_tokens::Arguments arguments{.logits = op.logits.data<float>(),
                                               .stride = op.logits.row_stride(),
                                               .vocabulary = static_cast<int>(dims['V']),
                                               .seen = op.seen.data<uint32_t>(),
                                               .seen_stride = op.seen.row_stride(),
                                               .slot_count = dims['S'],
                                               .slots = op.slots.data<int32_t>(),
                                               .penalty = op.penalty.data<float>(),
                                               .banned = op.banned.data<int32_t>(),
                                               .banned_count = static_cast<int>(dims['B']),
                                               .ban = op.ban.data<int32_t>(),
                                               .wanted = static_cast<int>(dims['N']),
                                               .tokens = op.tokens.data<int32_t>(),
                                               .tokens_stride = op.tokens.row_stride(),
                                               .scores = op.scores.data<float>(),
                                               .scores_stride = op.scores.row_stride()};
  const bool in_pieces = reinterpret_cast<uintptr_t>(arguments.logits) % 16 == 0 &&
                         arguments.stride % 4 == 0 && dims['V'] % 4 == 0;
  cuda::launch_kernel(context,
                      in_pieces ? cuda::best_tokens::best_tokens<4> : cuda::best_tokens::best_tokens<1>,
                      static_cast<unsigned>(dims['R']), cuda::sampling::threads, 0, arguments);
}

}  // namespace sl
