// PlanPagedAttention: one block counts pieces of work by size, then places them, longest first, so that a
// grid that takes them in order ends evenly. What a plan is: paged_plan.cuh.
#include "kernels/cuda/paged_plan.cuh"

#include "kernels/cuda/paged_attention.hpp"

namespace sl {
namespace cuda::paged {
namespace {

constexpr int plan_threads = 1024;
constexpr int classes = 64;  // of size, of each kind of work; class 0 is the longest
constexpr unsigned whole_warp = 0xFFFFFFFFU;

struct PlanArguments {
  const int* query_offsets;
  const int* context_lengths;
  int* plan;
  int64_t capacity;
  int sequences, group;
  bool rows_alone;  // each row is one chunk with all of its context
};

__device__ int class_of(int tokens, int unit) { return classes - 1 - min(classes - 1, tokens / unit); }
__device__ int class_of_chunk(int tokens, bool whole) { return class_of(tokens, whole ? 512 : 64); }
__device__ int class_of_tile(int visible) { return classes + class_of(visible, 512); }

// Calls on_chunk(class, DecodeChunk without a slot) or on_tile(class, PrefillTile) for all work of a
// sequence, spread over the lanes of the calling warp.
template <typename OnChunk, typename OnTile>
__device__ void for_each_piece(const PlanArguments& a, int sequence, OnChunk&& on_chunk, OnTile&& on_tile) {
  const int lane = threadIdx.x % 32;
  const int row = a.query_offsets[sequence], rows = a.query_offsets[sequence + 1] - row;
  const int context = a.context_lengths[sequence];
  if (a.rows_alone) {
    for (int i = lane; i < rows; i += 32) {
      const int tokens = max(0, context - rows + i + 1);
      on_chunk(class_of_chunk(tokens, true), DecodeChunk{sequence, row + i, 0, tokens, 0, 1, 0, 0});
    }
  } else if (rows == 1) {
    const int step = chunk_tokens(context), chunks = chunks_of(context);
    if (lane < chunks) {
      const int tokens = min(step, context - lane * step);
      on_chunk(class_of_chunk(tokens, false),
               DecodeChunk{sequence, row, lane * step, tokens, lane, chunks, 0, 0});
    }
  } else {
    const int step = tile_rows(a.group);
    for (int first = lane * step; first < rows; first += 32 * step) {
      const int end = min(first + step, rows);
      on_tile(class_of_tile(max(0, context - rows + end)), PrefillTile{sequence, first});
    }
  }
}

__global__ void __launch_bounds__(plan_threads) plan_kernel(const PlanArguments a) {
  __shared__ int places[2 * classes];  // how many pieces, then where the next of the class goes
  __shared__ int totals[2], slots;
  wait_for_previous();
  start_next();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x < 2 * classes) places[threadIdx.x] = 0;
  if (threadIdx.x == 0) slots = 0;
  __syncthreads();
  for (int s = warp; s < a.sequences; s += plan_threads / 32) {
    const auto count = [&](int piece_class, const auto&) { atomicAdd(&places[piece_class], 1); };
    for_each_piece(a, s, count, count);
  }
  __syncthreads();
  if (warp < 2) {  // one for each kind of work: where its classes begin
    int carried = 0;
    for (int base = 0; base < classes; base += 32) {
      const int mine = places[warp * classes + base + lane];
      int sum = mine;
      for (int offset = 1; offset < 32; offset *= 2) {
        const int other = __shfl_up_sync(whole_warp, sum, offset);
        if (lane >= offset) sum += other;
      }
      places[warp * classes + base + lane] = carried + sum - mine;
      carried += __shfl_sync(whole_warp, sum, 31);
    }
    if (lane == 0) totals[warp] = carried;
  }
  __syncthreads();

  const int64_t chunks_at = chunks_begin(a.sequences), tiles_at = chunks_at + int64_t{8} * totals[0];
  if (tiles_at + 2 * totals[1] > a.capacity) __trap();  // not the workspace of this batch
  for (int s = warp; s < a.sequences; s += plan_threads / 32) {
    // Lane 0 asks for slots of all chunks at once; where they are does not matter to the result.
    const auto place_chunk = [&](int piece_class, DecodeChunk chunk) {
      if (chunk.chunks > 1) {
        if (chunk.chunk == 0) {
          chunk.first_slot = atomicAdd(&slots, chunk.chunks);
          a.plan[header_ints + chunk.sequence] = chunk.first_slot;
        }
        chunk.first_slot = __shfl_sync(whole_warp >> (32 - chunk.chunks), chunk.first_slot, 0);
      }
      const int64_t at = chunks_at + int64_t{8} * atomicAdd(&places[piece_class], 1);
      int4* record = reinterpret_cast<int4*>(a.plan + at);
      record[0] = make_int4(chunk.sequence, chunk.row, chunk.begin, chunk.tokens);
      record[1] = make_int4(chunk.chunk, chunk.chunks, chunk.first_slot, 0);
    };
    const auto place_tile = [&](int piece_class, const PrefillTile& tile) {
      int* record = a.plan + tiles_at + int64_t{2} * atomicAdd(&places[piece_class], 1);
      record[0] = tile.sequence;
      record[1] = tile.first_row;
    };
    for_each_piece(a, s, place_chunk, place_tile);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    a.plan[chunk_count] = totals[0];
    a.plan[tile_count] = totals[1];
    a.plan[decode_queue] = a.plan[decode_queue + 1] = 0;
    a.plan[prefill_queue] = a.plan[prefill_queue + 1] = 0;
    a.plan[tiles_begin] = static_cast<int>(tiles_at);
    a.plan[slot_count] = slots;
  }
}

}  // namespace
}  // namespace cuda::paged

using namespace cuda;
using namespace cuda::paged;

AttentionWorkspace cuda_attention_workspace(int64_t rows, int64_t sequences, int64_t positions,
                                            int64_t query_heads, int64_t key_heads, int64_t head_dim) {
  require(key_heads > 0 && query_heads % key_heads == 0, "attention_workspace: heads do not group");
  const int64_t group = query_heads / key_heads;
  const int64_t chunks = most_chunks_of(positions);
  const int64_t work = std::max(sequences * chunks, rows);  // rows: when each is alone
  return {.plan = chunks_begin(sequences) + 8 * work + 2 * most_tiles(rows, sequences, group),
          .scratch = chunks == 1 ? 0 : sequences * chunks * key_heads * slot_floats(group, head_dim)};
}

template <>
void launch<Device::cuda>(const Context& context, const PlanPagedAttention& op) {
  const int64_t sequences = op.context_lengths.dim(0);
  match_shapes("PlanPagedAttention", context.device,
               {{"query_offsets", op.query_offsets, "N", DType::i32},
                {"context_lengths", op.context_lengths, "S", DType::i32},
                {"plan", op.plan, "L", DType::i32}},
               {{'N', sequences + 1}});
  require(op.key_heads > 0 && op.query_heads % op.key_heads == 0, "PlanPagedAttention: heads do not group");
  require(reinterpret_cast<uintptr_t>(op.plan.raw()) % sizeof(DecodeChunk) == 0,
          "PlanPagedAttention: plan is not aligned to 32 bytes");
  require(op.plan.dim(0) >= chunks_begin(sequences), "PlanPagedAttention: plan is too short");
  launch_kernel(context, plan_kernel, 1, plan_threads, 0,
                PlanArguments{.query_offsets = pointer<int>(op.query_offsets),
                              .context_lengths = pointer<int>(op.context_lengths),
                              .plan = pointer<int>(op.plan),
                              .capacity = op.plan.dim(0),
                              .sequences = static_cast<int>(sequences),
                              .group = static_cast<int>(op.query_heads / op.key_heads),
                              .rows_alone = context.deterministic});
}

}  // namespace sl
