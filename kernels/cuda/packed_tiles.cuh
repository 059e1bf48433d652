// Which tile of which sequence and head a block works on, found on the device: the host does not know the
// offsets. Pieces of work are numbered so that long ones come early and neighbours share keys and values.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sl::cuda {

// A tile of rows of one head of the sequence that owns rows first .. end. No sequence: head is negative.
struct PackedTile {
  int first, end;
  int tile;
  int head;
};

// Numbers the pieces of work of a batch: sequence by sequence; in it, sections of heads; in a section, the
// tiles from the last (a causal query tile attends to all keys before it, so the last is the longest) to the
// first, and for each the heads of the section. Callers ask for ascending numbers, with a whole warp.
class PackedTiles {
 public:
  // heads: pieces of work for each tile of rows.
  __device__ PackedTiles(const int32_t* offsets, int sequences, int tile_rows, int heads)
      : offsets_(offsets),
        sequences_(sequences),
        tile_rows_(tile_rows),
        heads_(heads),
        lane_(threadIdx.x % 32) {
    load(0);
  }

  // The piece of work number `index`. `section(length)`: heads in a section of a sequence of that length.
  template <bool ascending, typename Section>
  __device__ PackedTile find(int64_t index, Section&& section) {
    while (chunk_ < sequences_) {
      const int64_t in_chunk = index - before_ * heads_;
      const int all = __shfl_sync(whole_warp, last_tile_, 31);
      if (in_chunk < static_cast<int64_t>(all) * heads_) {
        const int tile_of_chunk = static_cast<int>(in_chunk / heads_);
        const unsigned later = __ballot_sync(whole_warp, last_tile_ > tile_of_chunk);
        const int owner = __ffs(static_cast<int>(later)) - 1;
        const int first = __shfl_sync(whole_warp, first_, owner);
        const int end = __shfl_sync(whole_warp, end_, owner);
        const int tiles = (end - first + tile_rows_ - 1) / tile_rows_;
        const int tiles_before = __shfl_sync(whole_warp, last_tile_, owner) - tiles;
        int rest = static_cast<int>(in_chunk - static_cast<int64_t>(tiles_before) * heads_);
        const int wanted = section(end - first);
        const int first_head = rest / (tiles * wanted) * wanted;
        const int heads_here = min(wanted, heads_ - first_head);
        rest -= first_head * tiles;
        const int tile = rest / heads_here;
        return {first, end, ascending ? tile : tiles - 1 - tile, first_head + rest % heads_here};
      }
      before_ += all;
      load(chunk_ + 32);
    }
    return {0, 0, 0, -1};
  }

 private:
  static constexpr unsigned whole_warp = 0xFFFFFFFFU;

  // Lane i takes sequence chunk + i and knows how many tiles end with it.
  __device__ void load(int chunk) {
    chunk_ = chunk;
    const int sequence = chunk + lane_;
    first_ = sequence < sequences_ ? offsets_[sequence] : 0;
    end_ = sequence < sequences_ ? offsets_[sequence + 1] : 0;
    last_tile_ = (end_ - first_ + tile_rows_ - 1) / tile_rows_;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(whole_warp, last_tile_, step);
      if (lane_ >= step) last_tile_ += other;
    }
  }

  const int32_t* offsets_;
  int sequences_, tile_rows_, heads_, lane_;
  int chunk_ = 0;       // sequences chunk_ .. chunk_ + 31 are in the lanes
  int64_t before_ = 0;  // tiles of the sequences before
  int first_ = 0, end_ = 0, last_tile_ = 0;
};

// Hands the pieces of work to the blocks of a persistent kernel: block b begins with piece b and takes the
// next free one when it wants more. The counters are left as they were found, at zero: kernels that use them
// run one after another (one stream drives a GPU).
struct PackedQueue {
  unsigned taken, finished;
};

// By one thread of the block.
__device__ inline int64_t take_work(PackedQueue* queue) {
  return static_cast<int64_t>(gridDim.x) + atomicAdd(&queue->taken, 1U);
}
// By one thread of the block, after its last take_work.
__device__ inline void leave_work(PackedQueue* queue) {
  __threadfence();
  if (atomicAdd(&queue->finished, 1U) == gridDim.x - 1) {
    queue->taken = 0;
    queue->finished = 0;
  }
}

}  // namespace sl::cuda
