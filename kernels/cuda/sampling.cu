// Marking seen tokens, and drawing tokens from logits.
//
// One team of blocks a row, in one launch. The row is read from memory once, with the penalty applied on the
// way; every thread keeps its largest logit. When few tokens can be drawn they are gathered in a list
// (sampling_few.cuh); otherwise the row is read several times for histograms (sampling_many.cuh). Weights are
// whole numbers, so a draw does not depend on how many blocks share a row.
//
// Microseconds a launch for a vocabulary of 152,064, logits not in L2, on one H100 80GB HBM3:
//   rows                                         1     8    16    32    64   128   256
//   top-k 20, top-p 0.8, penalty 1.1          13.0  15.7  17.5  23.1  32.8  41.8  74.1
//   reading the logits once, at 3.0 TB/s       0.2   1.6   3.2   6.5  13.0  26.0  51.9
//   top-k 100, top-p 0.9                      17.9                    34.4         100
//   top-p 0.9 alone, of a peaked distribution 21.8                    78.9         181
//   top-p 0.9 alone, nucleus of thousands       87                     239         571
//   no filter                                 20.7                    62.1         153
//   temperature 0                              7.2                    25.4        62.5
// What was tried (1, 64, 256 rows of the first line):
//   the first version: the largest of the blocks' top_k-th logits as the bound (a list of up to `blocks`
//     times top_k tokens), all of it compared for top-p, every seen logit divided   20.6, 37.4, 77.3
//   8 groups of 4 logits under way in a thread instead of 4                 13.3, 32.4, 74.0
//   that, and one block to a multiprocessor with 128 registers              13.2, 32.1, 104.6
//   scaling the row in place before further readings: no filter took 34, 141, 369 instead of 21, 62, 153
#include <algorithm>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/sampling_few.cuh"
#include "kernels/cuda/sampling_many.cuh"

namespace sl {
namespace cuda::sampling {

struct Arguments {
  float* logits;
  int64_t stride;
  int vocabulary;
  uint32_t* seen;
  int64_t seen_stride, slot_count;
  const int32_t* slots;
  const float *temperature, *top_p, *penalty;
  const int32_t* top_k;
  const uint32_t *stream_low, *stream_high, *position;
  const int32_t* banned;
  int banned_count;
  const int32_t* ban;
  int32_t* out;
};

struct Shared {
  uint32_t largest;  // of this block's logits
  uint32_t bound;    // reached by this block's share of top_k logits
  int unusable;
  int first_largest;  // temperature 0: the token
  union {
    Few few;
    Many many;
  };
};

// The largest logit of a thread's slice, NaN if one is NaN; and the first group that has it.
struct SliceTop {
  float largest = -INFINITY;
  int group = 0;
};

template <int width>
__device__ float largest_of(const Group<width>& g) {
  float largest = g.logit[0];
#pragma unroll
  for (int i = 1; i < width; ++i) largest = max_or_nan(largest, g.logit[i]);
  return largest;
}

template <int blocks, int width>
__device__ SliceTop read_slice(const Row& row) {
  SliceTop top;
  // A penalty from 1 on only lowers logits: what does not exceed the largest so far need not be divided.
  const bool only_lowers = row.penalty >= 1.0F && row.penalty < INFINITY;
  const auto look = [&](int group, Group<width> g) {
    float largest = largest_of(g);
    if (g.seen != 0 && (largest > top.largest || !only_lowers)) {
      row.penalize(g);
      largest = largest_of(g);
    }
    if (largest > top.largest) top.group = group;
    top.largest = max_or_nan(top.largest, largest);
  };
  for_each_of_slice<blocks, width>(row, look);
  return top;
}

// What one row asks for.
struct Wish {
  Row row;
  bool greedy;     // temperature 0
  bool in_range;   // temperature and penalty
  float uniform;   // the number that it draws with
  uint32_t* seen;  // the bitmap to set a bit in; null: none
};

__device__ inline Wish wish_of(const Arguments& a, int index) {
  const int64_t slot = a.slots[index];
  const float temperature = a.temperature[index], penalty = a.penalty[index];
  const int top_k = a.top_k[index];
  const uint64_t stream = uint64_t{a.stream_high[index]} << 32 | a.stream_low[index];
  uint32_t* const seen = slot >= 0 && slot < a.slot_count ? a.seen + slot * a.seen_stride : nullptr;
  const bool greedy = temperature == 0.0F;
  return {.row = {.logits = a.logits + index * a.stride,
                  .vocabulary = a.vocabulary,
                  .seen = penalty != 1.0F ? seen : nullptr,
                  .penalty = penalty,
                  .temperature = greedy ? 1.0F : temperature,
                  .top_k = top_k > 0 && top_k < a.vocabulary ? top_k : 0,
                  .top_p = a.top_p[index]},
          .greedy = greedy,
          .in_range = temperature >= 0.0F && penalty > 0.0F,
          .uniform = uniform_at(stream, a.position[index]),
          .seen = seen};
}

// The functions below return the token in one thread of the team, and -1 in all others.

template <int blocks, int width>
__device__ int first_largest(const Row& row, const SliceTop& top, bool is_largest, Shared& shared) {
  if (is_largest) {
    Group<width> g = row.load<width>(top.group);
    row.penalize(g);
    int token = 0;
#pragma unroll
    for (int i = width - 1; i >= 0; --i) {
      if (g.logit[i] == top.largest) token = top.group * width + i;
    }
    atomicMin(&Team<blocks>::of(&shared, 0)->first_largest, token);
  }
  Team<blocks>::sync();
  return threadIdx.x == 0 && Team<blocks>::member() == 0 ? shared.first_largest : -1;
}

// slices_bound: a logit, before scaling, that top_k logits reach, when top_k is on and up to slices_top_k.
template <int blocks, int width>
__device__ int draw_filtered(const Row& row, const SliceTop& top, float slices_bound, float largest,
                             float uniform, Shared& shared) {
  const bool bound_by_slices = row.top_k > 0 && row.top_k <= slices_top_k;
  Near near;
  if (!bound_by_slices && (row.top_k > 0 || row.top_p < 1.0F))
    near = bound_by_distance<blocks, width>(row, largest, shared.few);
  bool listed = bound_by_slices || near.found;
  if (listed) {
    const float bound = bound_by_slices ? slices_bound / row.temperature : near.bound;
    gather<blocks, width>(row, top.largest, bound, shared.few);
    Team<blocks>::sync();
    listed = Team<blocks>::of(&shared, 0)->few.count <= most_few;
  }
  Team<blocks>::sync();  // before the list's memory becomes something else
  if (!listed) return draw_from_many<blocks, width>(row, largest, uniform, near, shared.many);
  return Team<blocks>::member() == 0 ? draw_from_few(row, largest, uniform, near.total, shared.few) : -1;
}

template <int blocks, int width>
__global__ void SL_CLUSTER(blocks) __launch_bounds__(threads, 2) draw(const Arguments a) {
  __shared__ Shared shared;
  using Members = Team<blocks>;
  const int index = static_cast<int>(blockIdx.x) / blocks, member = Members::member();
  if (threadIdx.x == 0) {
    shared.largest = 0;
    shared.first_largest = a.vocabulary;
    shared.few.slice_count = shared.few.count = shared.few.kept_count = 0;
  }
  wait_for_previous();
  start_next();

  const Wish wish = wish_of(a, index);
  const Row& row = wish.row;
  if (a.ban[index] != 0) {
    for (int i = threadIdx.x; i < a.banned_count; i += threads) {
      const int token = a.banned[i];
      if (token >= 0 && token < a.vocabulary && Slice<blocks>::is_ours(token / width))
        row.logits[token] = -INFINITY;
    }
  }
  __syncthreads();

  // Every block's largest logit, and its bound: where every block has its share of top_k logits, the row has
  // top_k.
  const SliceTop top = read_slice<blocks, width>(row);
  const uint32_t key = key_of(top.largest);
  const uint32_t warp_largest = __reduce_max_sync(all_lanes, key);
  if (threadIdx.x % 32 == 0) atomicMax(&shared.largest, warp_largest);
  const int unusable = __syncthreads_or(isnan(top.largest) || !wish.in_range ? 1 : 0);
  uint32_t bound = 0;
  if (!wish.greedy && row.top_k > 0 && row.top_k <= slices_top_k)
    bound = kth_largest(key, (row.top_k + blocks - 1) / blocks);
  if (threadIdx.x == 0) {
    shared.bound = max(bound, key_of(-INFINITY));
    shared.unusable = unusable;
  }
  Members::sync();
  uint32_t largest_key = 0, least_bound = 0xffffffffU;
  bool usable = true;
#pragma unroll
  for (int i = 0; i < blocks; ++i) {
    const Shared* const theirs = Members::of(&shared, i);
    largest_key = max(largest_key, theirs->largest);
    least_bound = min(least_bound, theirs->bound);
    usable = usable && theirs->unusable == 0;
  }
  const float largest = float_of(largest_key) / row.temperature;

  if (!usable || !(fabsf(largest) < INFINITY)) {
    Members::sync();  // others have read this block's shared memory
    if (threadIdx.x == 0 && member == 0) a.out[index] = -1;
    return;
  }
  const int token = wish.greedy ? first_largest<blocks, width>(row, top, key == largest_key, shared)
                                : draw_filtered<blocks, width>(row, top, float_of(least_bound), largest,
                                                               wish.uniform, shared);
  if (token < 0) return;
  a.out[index] = token;
  if (wish.seen != nullptr) atomicOr(wish.seen + token / 32, 1U << (token % 32));
}

__global__ void mark(const int32_t* tokens, const int32_t* slots, int64_t count, uint32_t* seen,
                     int64_t stride, int64_t slot_count, int64_t words) {
  wait_for_previous();
  start_next();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t slot = slots[i], token = tokens[i];
  if (slot < 0 || slot >= slot_count || token < 0 || token / 32 >= words) return;
  atomicOr(seen + slot * stride + token / 32, 1U << (token % 32));
}

// As many blocks a row as are resident at once, while each has enough to read. Clusters of more than 2 are
// best one block to a multiprocessor.
int blocks_of_row(const Context& context, int64_t rows, int64_t vocabulary) {
  if (context.cuda->compute_capability < 90) return 1;
  constexpr int64_t least_tokens = 4096;
  const int64_t multiprocessors = context.cuda->multiprocessors;
  for (const int blocks : {8, 4, 2}) {
    const int64_t room = blocks > 2 ? multiprocessors : 2 * multiprocessors;
    if (rows * blocks <= room && vocabulary >= blocks * least_tokens) return blocks;
  }
  return 1;
}

}  // namespace cuda::sampling

template <>
void launch<Device::cuda>(const Context& context, const MarkSeen& op) {
  const Dims dims = match_shapes("MarkSeen", context.device,
                                 {{"tokens", op.tokens, "T", DType::i32},
                                  {"slots", op.slots, "T", DType::i32},
                                  {"seen", op.seen, "SW", DType::u32}});
  constexpr int64_t threads = 256;
  cuda::launch_kernel(context, cuda::sampling::mark, cuda::ceil_div(dims['T'], threads), threads, 0,
                      op.tokens.data<int32_t>(), op.slots.data<int32_t>(), dims['T'],
                      op.seen.data<uint32_t>(), op.seen.row_stride(), dims['S'], dims['W']);
}

template <>
void launch<Device::cuda>(const Context& context, const SampleTokens& op) {
  const Dims dims = match_shapes("SampleTokens", context.device,
                                 {{"logits", op.logits, "RV"},
                                  {"seen", op.seen, "SW", DType::u32},
                                  {"slots", op.slots, "R", DType::i32},
                                  {"temperature", op.temperature, "R"},
                                  {"top_p", op.top_p, "R"},
                                  {"penalty", op.penalty, "R"},
                                  {"top_k", op.top_k, "R", DType::i32},
                                  {"stream_low", op.stream_low, "R", DType::u32},
                                  {"stream_high", op.stream_high, "R", DType::u32},
                                  {"position", op.position, "R", DType::u32},
                                  {"banned", op.banned, "B", DType::i32},
                                  {"ban", op.ban, "R", DType::i32},
                                  {"out", op.out, "R", DType::i32}},
                                 {{'W', (op.logits.columns() + 31) / 32}});
  using namespace cuda::sampling;
  const int64_t rows = dims['R'], vocabulary = dims['V'];
  require(vocabulary <= most_tokens, "SampleTokens: a vocabulary of more than 2^19 tokens");
  const Arguments arguments{.logits = op.logits.data<float>(),
                            .stride = op.logits.row_stride(),
                            .vocabulary = static_cast<int>(vocabulary),
                            .seen = op.seen.data<uint32_t>(),
                            .seen_stride = op.seen.row_stride(),
                            .slot_count = dims['S'],
                            .slots = op.slots.data<int32_t>(),
                            .temperature = op.temperature.data<float>(),
                            .top_p = op.top_p.data<float>(),
                            .penalty = op.penalty.data<float>(),
                            .top_k = op.top_k.data<int32_t>(),
                            .stream_low = op.stream_low.data<uint32_t>(),
                            .stream_high = op.stream_high.data<uint32_t>(),
                            .position = op.position.data<uint32_t>(),
                            .banned = op.banned.data<int32_t>(),
                            .banned_count = static_cast<int>(dims['B']),
                            .ban = op.ban.data<int32_t>(),
                            .out = op.out.data<int32_t>()};
  const auto launch_on = [&](auto kernel, int blocks) {
    cuda::launch_kernel(context, kernel, static_cast<unsigned>(rows * blocks), threads, 0, arguments);
  };
  const bool in_pieces = reinterpret_cast<uintptr_t>(arguments.logits) % 16 == 0 &&
                         arguments.stride % 4 == 0 && vocabulary % 4 == 0;
  if (!in_pieces) return launch_on(draw<1, 1>, 1);
  switch (blocks_of_row(context, rows, vocabulary)) {
    case 8:
      return launch_on(draw<8, 4>, 8);
    case 4:
      return launch_on(draw<4, 4>, 4);
    case 2:
      return launch_on(draw<2, 4>, 2);
    default:
      return launch_on(draw<1, 4>, 1);
  }
}

}  // namespace sl
