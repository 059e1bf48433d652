// The plan of a batch: what PlanPagedAttention writes, and the kernels of PagedAttention read. i32 numbers:
//
//   0        number of chunks            4, 5     the same two counters of the prefill kernel
//   1        number of prefill tiles     6        prefill tiles begin at this int
//   2        pieces of work given out    7        slots of scratch in use
//   3        blocks that found no more
//   8 ..     for each sequence the slot of scratch of its first chunk, if it has several
//   chunks   8 ints each (DecodeChunk), longest first
//   tiles    2 ints each (PrefillTile), longest first
//
// A sequence with one row is decoding: its context is cut into chunks. The size of a chunk depends on the
// length of that context alone, so a row's result does not depend on the batch around it. A sequence with
// more rows goes to the prefill kernel, in tiles of rows.
//
// The prefill kernel rounds differently. With Context::deterministic a row must have the same bits wherever
// its prompt was cut, so then every row, of whatever sequence, is one chunk of the decode kernel with all of
// its context: no tiles, no scratch.
#pragma once

#include <algorithm>

#include "kernels/cuda/common.cuh"

namespace sl::cuda::paged {

// Sizes of chunks, in tokens. Small ones spread a short context over more multiprocessors when few sequences
// decode; large ones leave less to add up.
constexpr int small_chunk = 256, large_chunk = 512;
constexpr int short_context = 1024;  // cut in small chunks
constexpr int most_chunks = 32;      // of a sequence: one lane of a warp each when they are added up
constexpr int tile_pairs = 128;      // of row and query head, that a block of a prefill kernel works on

enum Header : int { chunk_count, tile_count, decode_queue, prefill_queue = 4, tiles_begin = 6, slot_count };
constexpr int header_ints = 8;

struct DecodeChunk {
  int sequence, row;
  int begin, tokens;        // of the context
  int chunk, chunks;        // this one's number, how many the sequence has
  int first_slot, padding;  // of scratch, for the first of several chunks
};
struct PrefillTile {
  int sequence, first_row;  // of the sequence's rows
};
static_assert(sizeof(DecodeChunk) == 32 && sizeof(PrefillTile) == 8);

__host__ __device__ inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

__host__ __device__ inline int64_t chunks_begin(int64_t sequences) {
  return header_ints + round_up(sequences, 8);
}

__host__ __device__ inline int chunk_tokens(int context) {
  if (context <= short_context) return small_chunk;
  constexpr int unit = large_chunk * most_chunks;
  return large_chunk * ((context + unit - 1) / unit);
}
// At least one: an empty context has an empty chunk.
__host__ __device__ inline int chunks_of(int context) {
  const int step = chunk_tokens(context);
  return context <= step ? 1 : (context + step - 1) / step;
}
// Of any context of at most so many tokens.
inline int64_t most_chunks_of(int64_t positions) {
  const int64_t small = ceil_div(std::min<int64_t>(positions, short_context), small_chunk);
  return std::clamp<int64_t>(ceil_div(positions, large_chunk), std::max<int64_t>(small, 1), most_chunks);
}

// Rows of a prefill tile: whole ones, each with all query heads of a key-value head.
__host__ __device__ inline int tile_rows(int group) { return group < tile_pairs ? tile_pairs / group : 1; }
// Tiles of at most so many rows in sequences of at least two rows.
inline int64_t most_tiles(int64_t rows, int64_t sequences, int64_t group) {
  return rows / tile_rows(static_cast<int>(group)) + std::min(sequences, rows / 2);
}

// Floats of scratch for one chunk and key-value head: unnormalised sums (group, D), then (largest score, sum
// of exponentials) of each head.
__host__ __device__ inline int64_t slot_floats(int64_t group, int64_t head_dim) {
  return round_up(group * (head_dim + 2), 4);
}

// Persistent kernels begin with the piece of work that follows from a block's number; the next ones they take
// from a queue of the plan: (pieces given out, blocks that found no more).
__device__ inline int take_work(int* queue) { return atomicAdd(queue, 1); }

// By one thread of every block, after its last take_work. The last one to leave resets the queue, for the
// next layer.
__device__ inline void leave_queue(int* queue) {
  __threadfence();
  if (atomicAdd(queue + 1, 1) == static_cast<int>(gridDim.x) - 1) queue[0] = queue[1] = 0;
}

}  // namespace sl::cuda::paged
