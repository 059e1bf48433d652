// Attention of single rows: the decoding sequences of a batch. Bound by reading the keys and values once.
//
// A persistent grid takes pieces of work (chunk of a context, key-value head) from the plan. In a block, one
// producer warp reads the plan and page tables, and keeps a ring in shared memory full, running ahead across
// pieces of work: stages of 32 tokens, keys and values. Consumer warps take the stages in turn; a slot of the
// ring belongs to one of them, which alone waits for it and frees it. At the end of a chunk they add up their
// sums. A second kernel adds up the chunks of rows that have several, in order of chunks: a row's bits depend
// neither on the batch nor on the order of events.
//
// Products are transposed to waste no tensor-core rows on GQA groups of up to 8 heads: scores^T (16 tokens, 8
// heads) = keys x queries^T, sums^T (D, 8 heads) += values^T x weights^T.
#pragma once

#include "kernels/cuda/paged_fetch.cuh"
#include "kernels/cuda/paged_mma.cuh"
#include "kernels/cuda/paged_plan.cuh"

namespace sl::cuda::paged {

constexpr int stage_parts = 2;
constexpr int stage_tokens = stage_parts * part_tokens;
constexpr int work_slots = 4;  // pieces of work whose queries are in shared memory

struct DecodeArguments {
  PageRows pages;
  const bf16* qkv;
  int64_t qkv_stride;
  const int* query_offsets;
  const int* page_tables;
  int64_t table_stride;
  bf16* out;
  int64_t out_stride;
  int* plan;
  float* scratch;
  int64_t scratch_floats;
  int64_t rows;
  int sequences, key_heads, group;
  int parts_a_page;
  int stages;        // of the ring
  float scale_log2;  // of scores, in powers of 2
  // The kernel before this one in the stream is the prefill kernel, which has waited for all that is read
  // here: wait for it at the end only, so that the two run at the same time.
  bool beside_previous;
};

// A piece of work.
struct Work {
  DecodeChunk chunk;  // of row -1: there is no more work
  int head;
  int padding[7];
};

template <int head_dim, int head_tiles, int consumers>
struct DecodeLayout {
  static constexpr int stage_elements = stage_tokens * head_dim;  // keys; then as many values
  static constexpr int heads = 8 * head_tiles;
  static constexpr int query_stride = head_dim + 8;  // rows padded by a bank's width, against conflicts
  static constexpr int sum_stride = head_dim + 4;

  struct alignas(16) Shared {
    uint64_t work_full[work_slots], work_empty[work_slots];
    Work work[work_slots];
    alignas(16) bf16 queries[work_slots][heads * query_stride];
    // Of a chunk, by every consumers-th stage: largest score and sum of exponentials; weighted values.
    float2 stats[consumers][heads];
    float sums[consumers][heads][sum_stride];
  };
  // The ring comes first, at a multiple of 1024 bytes, as its swizzled tiles need.
  static int64_t bytes(int64_t stages) {
    return 1024 + stages * (2 * stage_elements * 2 + 2 * 8) + static_cast<int64_t>(sizeof(Shared));
  }
};

__device__ inline void add_scaled(float4& sum, float factor, const float4& x) {
  sum.x += factor * x.x, sum.y += factor * x.y, sum.z += factor * x.z, sum.w += factor * x.w;
}
__device__ inline void store_row(bf16* to, const float4& x) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack(x.x, x.y), pack(x.z, x.w));
}

template <int head_dim, int head_tiles, int consumers>
class DecodeBlock {
  using Layout = DecodeLayout<head_dim, head_tiles, consumers>;
  using Shared = typename Layout::Shared;
  static constexpr int steps = head_dim / 16;  // of products, along D
  static constexpr unsigned whole_warp = 0xFFFFFFFFU;

 public:
  static constexpr int threads = 32 * (consumers + 1);

  __device__ DecodeBlock(const DecodeArguments& arguments, unsigned char* memory)
      : a_(arguments),
        ring_(reinterpret_cast<bf16*>(memory)),
        shared_(*reinterpret_cast<Shared*>(stage_keys(a_.stages))),
        full_(reinterpret_cast<uint64_t*>(&shared_ + 1)),
        empty_(full_ + a_.stages),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32) {}

  __device__ void run() {
    init_barriers();
    __syncthreads();
    if (!a_.beside_previous) wait_for_previous();
    start_next();
    if (warp_ < consumers) {
      clear_rows_without_sequence();
      consume();
    } else {
      produce();
    }
    if (a_.beside_previous) wait_for_previous();
  }

 private:
  __device__ void init_barriers() {
    const int i = threadIdx.x;
    if (i < a_.stages) {
      barrier_init(full_ + i, fetch_arrivals);
      barrier_init(empty_ + i, 1);
    }
    if (i < work_slots) {
      barrier_init(shared_.work_full + i, fetch_arrivals);
      barrier_init(shared_.work_empty + i, consumers);
    }
    fence_barrier_init();
  }

  __device__ bf16* stage_keys(int slot) const { return ring_ + int64_t{2} * slot * Layout::stage_elements; }

  // ---- Producer ----

  // The first piece of work follows from the block's number; the next is asked for while one is fetched.
  __device__ void produce() {
    if (a_.plan[slot_count] * a_.key_heads * slot_floats(a_.group, head_dim) > a_.scratch_floats) __trap();
    const int total = a_.plan[chunk_count] * a_.key_heads;
    Cursor stage(filling), slot(filling);
    int work = blockIdx.x;
    int field = load_field(work);
    while (work < total) {
      int next = 0;
      if (lane_ == 0) next = gridDim.x + take_work(a_.plan + decode_queue);
      const DecodeChunk chunk = chunk_of(field);
      const int head = work % a_.key_heads;
      const int row = find_part(chunk, head, 0);
      push_work(chunk, head, slot);
      push_stages(chunk, head, row, stage);
      work = __shfl_sync(whole_warp, next, 0);
      if (work < total) field = load_field(work);
    }
    barrier_wait(shared_.work_empty + slot.slot, slot.parity);
    if (lane_ == 0) shared_.work[slot.slot].chunk.row = -1;
    begin_fetch(shared_.work_full + slot.slot, 0, lane_);
    end_fetch(shared_.work_full + slot.slot);
    if (lane_ == 0) leave_queue(a_.plan + decode_queue);
  }

  // Lane i < 8 loads int i of the plan's record.
  __device__ int load_field(int work) const {
    if (lane_ >= 8) return 0;
    return a_.plan[chunks_begin(a_.sequences) + 8 * (work / a_.key_heads) + lane_];
  }
  __device__ static DecodeChunk chunk_of(int field) {
    DecodeChunk chunk;
    chunk.sequence = __shfl_sync(whole_warp, field, 0);
    chunk.row = __shfl_sync(whole_warp, field, 1);
    chunk.begin = __shfl_sync(whole_warp, field, 2);
    chunk.tokens = __shfl_sync(whole_warp, field, 3);
    chunk.chunk = __shfl_sync(whole_warp, field, 4);
    chunk.chunks = __shfl_sync(whole_warp, field, 5);
    chunk.first_slot = __shfl_sync(whole_warp, field, 6);
    chunk.padding = 0;
    return chunk;
  }

  __device__ void push_work(const DecodeChunk& chunk, int head, Cursor& slot) {
    barrier_wait(shared_.work_empty + slot.slot, slot.parity);
    if (lane_ == 0) {
      shared_.work[slot.slot].chunk = chunk;
      shared_.work[slot.slot].head = head;
    }
    uint64_t* full = shared_.work_full + slot.slot;
    begin_fetch(full, a_.group * head_dim * 2, lane_);
    fetch_rows(full, shared_.queries[slot.slot], Layout::query_stride,
               a_.qkv + chunk.row * a_.qkv_stride + int64_t{head} * a_.group * head_dim, a_.group, head_dim,
               lane_);
    end_fetch(full);
    slot.next(work_slots);
  }

  // Where part `base` + lane of the chunk begins, as a row of the pages.
  __device__ int find_part(const DecodeChunk& chunk, int head, int base) const {
    const int part = base + lane_;
    if (part * part_tokens >= chunk.tokens) return 0;
    const int place = chunk.begin / part_tokens + part;
    const int page = a_.page_tables[chunk.sequence * a_.table_stride + place / a_.parts_a_page];
    return ((page * a_.key_heads + head) * a_.parts_a_page + place % a_.parts_a_page) * part_tokens;
  }

  // `row`: of find_part for the first 32 parts.
  __device__ void push_stages(const DecodeChunk& chunk, int head, int row, Cursor& stage) {
    const int parts = (chunk.tokens + part_tokens - 1) / part_tokens;
    for (int base = 0; base < parts; base += 32) {
      const int next_row = find_part(chunk, head, base + 32);
      const int here = min(32, parts - base);
      for (int first = 0; first < here; first += stage_parts) {
        const int count = min(stage_parts, here - first);
        uint64_t* full = full_ + stage.slot;
        bf16* keys = stage_keys(stage.slot);
        barrier_wait(empty_ + stage.slot, stage.parity);
        begin_fetch(full, count * 2 * part_tokens * head_dim * 2, lane_);
        fetch_parts<head_dim>(full, keys, keys + Layout::stage_elements, a_.pages, row, first, count, lane_);
        end_fetch(full);
        stage.next(a_.stages);
      }
      row = next_row;
    }
  }

  // ---- Consumers ----

  // Running softmax of one warp, transposed: lane 4 g + t holds heads 8 n + 2t and 8 n + 2t + 1 (numbers 0
  // and 1 of the last dimension; of sums, of element 16 i + g, then of element 16 i + g + 8).
  struct State {
    float largest[head_tiles][2];
    float total[head_tiles][2];  // of this lane's tokens only
    float sums[steps][head_tiles][4];
  };
  using Queries = uint32_t[steps][head_tiles][2];

  __device__ void consume() {
    Cursor stage(draining), slot(draining);
    for (;;) {
      barrier_wait(shared_.work_full + slot.slot, slot.parity);
      const Work work = shared_.work[slot.slot];
      if (work.chunk.row < 0) return;
      Queries queries;
      load_queries(shared_.queries[slot.slot], queries);
      __syncwarp();
      if (lane_ == 0) barrier_arrive(shared_.work_empty + slot.slot);
      slot.next(work_slots);

      State state = {};
#pragma unroll
      for (int n = 0; n < head_tiles; ++n) state.largest[n][0] = state.largest[n][1] = -INFINITY;
      // The ring has a multiple of `consumers` slots; this warp's are those of its number, modulo consumers.
      // Which stages of the chunk that makes depends on where the chunk begins in the ring, so `share` says
      // which.
      const int stages = (work.chunk.tokens + stage_tokens - 1) / stage_tokens;
      const int share = (warp_ + consumers - stage.slot % consumers) % consumers;
      for (int i = share; i < stages; i += consumers) {
        Cursor mine = stage;
        mine.advance(i, a_.stages);
        bf16* keys = stage_keys(mine.slot);
        barrier_wait(full_ + mine.slot, mine.parity);
        attend(keys, work.chunk.tokens - i * stage_tokens, queries, state);
        __syncwarp();
        if (lane_ == 0) barrier_arrive(empty_ + mine.slot);
      }
      stage.advance(stages, a_.stages);
      sync_consumers();  // the sums of the chunk before have been read
      leave_sums(state, share);
      sync_consumers();
      write_chunk(work);
    }
  }

  // Heads beyond the group are zeros.
  __device__ void load_queries(const bf16* queries, Queries& fragments) const {
#pragma unroll
    for (int n = 0; n < head_tiles; ++n) {
      const int head = 8 * n + lane_ / 4;
      const auto* row = reinterpret_cast<const uint32_t*>(queries + head * Layout::query_stride) + lane_ % 4;
#pragma unroll
      for (int k = 0; k < steps; ++k) {
#pragma unroll
        for (int i = 0; i < 2; ++i) fragments[k][n][i] = head < a_.group ? row[8 * k + 4 * i] : 0;
      }
    }
  }

  // Adds the tokens of a stage, of which the first `valid` exist.
  __device__ void attend(bf16* keys, int valid, const Queries& queries, State& state) const {
    bf16* values = keys + Layout::stage_elements;
    if (valid < stage_tokens) clear_behind(values, valid);
    float scores[stage_parts][head_tiles][4];
#pragma unroll
    for (int part = 0; part < stage_parts; ++part) {
      multiply_keys(shared_address(keys + part * part_tokens * head_dim), queries, scores[part]);
#pragma unroll
      for (int n = 0; n < head_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          scores[part][n][i] *= a_.scale_log2;
          if (part * part_tokens + i / 2 * 8 + lane_ / 4 >= valid) scores[part][n][i] = -INFINITY;
        }
      }
    }
    float factor[head_tiles][2];
    uint32_t weights[stage_parts][head_tiles][2];
#pragma unroll
    for (int n = 0; n < head_tiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float largest = -INFINITY;
#pragma unroll
        for (int part = 0; part < stage_parts; ++part) {
          largest = fmaxf(largest, fmaxf(scores[part][n][h], scores[part][n][h + 2]));
        }
#pragma unroll
        for (int offset = 4; offset < 32; offset *= 2) {
          largest = fmaxf(largest, __shfl_xor_sync(whole_warp, largest, offset));
        }
        largest = fmaxf(largest, state.largest[n][h]);
        factor[n][h] = exp2_fast(state.largest[n][h] - largest);
        state.largest[n][h] = largest;
        state.total[n][h] *= factor[n][h];
#pragma unroll
        for (int part = 0; part < stage_parts; ++part) {
#pragma unroll
          for (int i = h; i < 4; i += 2) {
            scores[part][n][i] = exp2_fast(scores[part][n][i] - largest);
            state.total[n][h] += scores[part][n][i];
          }
        }
      }
#pragma unroll
      for (int part = 0; part < stage_parts; ++part) {
        weights[part][n][0] = transpose(pack(scores[part][n][0], scores[part][n][1]));
        weights[part][n][1] = transpose(pack(scores[part][n][2], scores[part][n][3]));
      }
#pragma unroll
      for (int i = 0; i < steps; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) state.sums[i][n][e] *= factor[n][e % 2];
      }
    }
#pragma unroll
    for (int part = 0; part < stage_parts; ++part) {
      add_values(shared_address(values + part * part_tokens * head_dim), weights[part], state);
    }
  }

  // Zeros for values of tokens that do not exist: their weights are 0, but whatever is there may be NaN.
  __device__ void clear_behind(bf16* values, int valid) const {
    constexpr int tile = part_tokens * 64;  // a piece of 64 columns of a part
    for (int token = max(valid, 0); token < stage_tokens; ++token) {
      bf16* row = values + token / part_tokens * part_tokens * head_dim + token % part_tokens * 64;
      for (int i = lane_; i < head_dim / 8; i += 32) {
        *reinterpret_cast<uint4*>(row + i / 8 * tile + i % 8 * 8) = make_uint4(0, 0, 0, 0);
      }
    }
    fence_async();  // the next copy into this slot comes after
    __syncwarp();
  }

  // scores = keys x queries^T of 16 tokens; lane 4 g + t gets tokens g, g + 8 and heads 2t, 2t + 1.
  __device__ void multiply_keys(uint32_t keys, const Queries& queries, float (&scores)[head_tiles][4]) const {
    const uint32_t row = keys + lane_ % 16 * 128, piece = lane_ / 16 ^ lane_ % 8;
    float more[head_tiles][4] = {};  // two sums, so that products overlap
#pragma unroll
    for (int n = 0; n < head_tiles; ++n) scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0F;
#pragma unroll
    for (int k = 0; k < steps; ++k) {
      uint32_t x[4];
      load_matrices(x, row + k / 4 * part_tokens * 128 + (piece ^ 2 * k % 8) * 16);
#pragma unroll
      for (int n = 0; n < head_tiles; ++n) {
        multiply_add(k % 2 == 0 ? scores[n] : more[n], x[0], x[1], x[2], x[3], queries[k][n][0],
                     queries[k][n][1]);
      }
    }
#pragma unroll
    for (int n = 0; n < head_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] += more[n][i];
    }
  }

  // sums += values^T x weights^T of 16 tokens.
  __device__ void add_values(uint32_t values, const uint32_t (&weights)[head_tiles][2], State& state) const {
    const uint32_t row = values + (lane_ % 8 + lane_ / 16 * 8) * 128, piece = lane_ / 8 % 2 ^ lane_ % 8;
#pragma unroll
    for (int i = 0; i < steps; ++i) {
      uint32_t x[4];
      load_matrices_transposed(x, row + i / 4 * part_tokens * 128 + (piece ^ 2 * i % 8) * 16);
#pragma unroll
      for (int n = 0; n < head_tiles; ++n) {
        multiply_add(state.sums[i][n], x[0], x[1], x[2], x[3], weights[n][0], weights[n][1]);
      }
    }
  }

  __device__ void leave_sums(const State& state, int share) {
    const int g = lane_ / 4, t = lane_ % 4;
#pragma unroll
    for (int n = 0; n < head_tiles; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float total = state.total[n][h];
#pragma unroll
        for (int offset = 4; offset < 32; offset *= 2) total += __shfl_xor_sync(whole_warp, total, offset);
        const int head = 8 * n + 2 * t + h;
        if (g == 0) shared_.stats[share][head] = make_float2(state.largest[n][h], total);
        if (head >= a_.group) continue;
        float* sums = shared_.sums[share][head] + g;
#pragma unroll
        for (int i = 0; i < steps; ++i)
          sums[16 * i] = state.sums[i][n][h], sums[16 * i + 8] = state.sums[i][n][h + 2];
      }
    }
  }

  // The row itself if this is its only chunk, else into scratch.
  __device__ void write_chunk(const Work& work) const {
    float* slot =
        a_.scratch + (int64_t{work.chunk.first_slot + work.chunk.chunk} * a_.key_heads + work.head) *
                         slot_floats(a_.group, head_dim);
    for (int i = threadIdx.x; i < a_.group * head_dim / 4; i += 32 * consumers) {
      const int h = i / (head_dim / 4), d = i % (head_dim / 4) * 4;
      float largest = -INFINITY;
#pragma unroll
      for (int w = 0; w < consumers; ++w) largest = fmaxf(largest, shared_.stats[w][h].x);
      float total = 0.0F;
      float4 sum = {};
#pragma unroll
      for (int w = 0; w < consumers; ++w) {
        const float2 stats = shared_.stats[w][h];
        const float factor = stats.x == -INFINITY ? 0.0F : exp2_fast(stats.x - largest);
        total += factor * stats.y;
        add_scaled(sum, factor, *reinterpret_cast<const float4*>(&shared_.sums[w][h][d]));
      }
      if (work.chunk.chunks == 1) {
        float4 x = {};
        if (total != 0.0F) add_scaled(x, 1.0F / total, sum);  // 0: no context
        store_row(a_.out + work.chunk.row * a_.out_stride + int64_t{work.head * a_.group + h} * head_dim + d,
                  x);
      } else {
        *reinterpret_cast<float4*>(slot + i * 4) = sum;
        if (d == 0) reinterpret_cast<float2*>(slot + a_.group * head_dim)[h] = make_float2(largest, total);
      }
    }
  }

  // Rows after the last sequence (a graph's padding) get zeros.
  __device__ void clear_rows_without_sequence() const {
    const int width = a_.key_heads * a_.group * head_dim / 4;
    for (int64_t row = a_.query_offsets[a_.sequences] + blockIdx.x; row < a_.rows; row += gridDim.x) {
      for (int i = threadIdx.x; i < width; i += 32 * consumers) {
        *reinterpret_cast<uint2*>(a_.out + row * a_.out_stride + int64_t{i} * 4) = make_uint2(0, 0);
      }
    }
  }

  __device__ static void sync_consumers() {
    asm volatile("bar.sync 1, %0;" ::"n"(32 * consumers) : "memory");
  }

  const DecodeArguments& a_;
  bf16* ring_;
  Shared& shared_;
  uint64_t *full_, *empty_;
  int warp_, lane_;
};

template <int head_dim, int head_tiles, int consumers>
__global__ void __launch_bounds__(DecodeBlock<head_dim, head_tiles, consumers>::threads, 1)
    decode_kernel(const __grid_constant__ DecodeArguments arguments) {
  extern __shared__ unsigned char shared_memory[];
  unsigned char* memory = shared_memory + (1024 - shared_address(shared_memory) % 1024) % 1024;
  DecodeBlock<head_dim, head_tiles, consumers>(arguments, memory).run();
}

// Rows of several chunks: a warp for each row and query head adds up what decode_kernel left in scratch.
struct SumArguments {
  const int* query_offsets;
  const int* context_lengths;
  const int* plan;
  const float* scratch;
  bf16* out;
  int64_t out_stride;
  int sequences, key_heads, group;
};
constexpr int sum_warps = 4;  // of a block

template <int head_dim>
__global__ void __launch_bounds__(32 * sum_warps) sum_chunks_kernel(const SumArguments a) {
  constexpr int share = head_dim / 32;  // elements of a lane
  using Vector = std::conditional_t<share == 4, float4, float2>;
  const int lane = threadIdx.x % 32, query_heads = a.key_heads * a.group;
  const int task = blockIdx.x * sum_warps + threadIdx.x / 32;
  const int sequence = task / query_heads, head = task % query_heads;
  // The decode kernel before this one has waited for all earlier ones, so the plan may be read now already.
  int row = 0, chunks = 1, slot = 0;
  if (sequence < a.sequences) {
    row = a.query_offsets[sequence];
    if (a.query_offsets[sequence + 1] == row + 1) chunks = chunks_of(a.context_lengths[sequence]);
    slot = a.plan[header_ints + sequence];
  }
  wait_for_previous();
  start_next();
  if (chunks == 1) return;

  const int64_t floats = slot_floats(a.group, head_dim), step = a.key_heads * floats;
  const float* first = a.scratch + (int64_t{slot} * a.key_heads + head / a.group) * floats;
  const int h = head % a.group;
  float2 stats = make_float2(-INFINITY, 0.0F);  // of chunk `lane`
  if (lane < chunks) {
    stats = reinterpret_cast<const float2*>(first + lane * step + a.group * head_dim)[h];
  }
  float weight = 0.0F, sum[share] = {};
  for (int base = 0; base < chunks; base += 8) {
    Vector x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (base + j < chunks) {
        x[j] = reinterpret_cast<const Vector*>(first + (base + j) * step + h * head_dim)[lane];
      }
    }
    if (base == 0) {  // while those are on their way
      const float factor = exp2_fast(stats.x - warp_max(stats.x));
      weight = factor / warp_sum(factor * stats.y);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (base + j < chunks) {
        const float factor = __shfl_sync(0xFFFFFFFFU, weight, base + j);
#pragma unroll
        for (int e = 0; e < share; ++e) sum[e] += factor * reinterpret_cast<const float*>(&x[j])[e];
      }
    }
  }
  uint32_t words[share / 2];
#pragma unroll
  for (int e = 0; e < share / 2; ++e) words[e] = pack(sum[2 * e], sum[2 * e + 1]);
  auto* out =
      reinterpret_cast<uint32_t*>(a.out + row * a.out_stride + int64_t{head} * head_dim) + lane * share / 2;
#pragma unroll
  for (int e = 0; e < share / 2; ++e) out[e] = words[e];
}

}  // namespace sl::cuda::paged
