// The gated activation of bf16 rows with adapters on gate and up: a warp adds the low-rank parts to 16 rows
// by 32 columns with tensor cores (mma.m16n8k16), 16 numbers of the rank at a time, before the activation.
//
// Operands go from memory straight into the fragments of the mma. In product number j, column n stands for
// output 4 n + j of the warp's 32: so a thread reads b of four neighbouring outputs at once, and holds eight
// neighbours of its two rows. What it holds of the next tiles it copies to places of its own in shared memory
// while it computes (CopiesAhead): no thread waits for another's copies.
#pragma once

#include "kernels/cuda/paged_mma.cuh"
#include "kernels/cuda/swiglu.cuh"

namespace sl::cuda {

struct GatedTiles {
  static constexpr int rows = 16, columns = 32;  // of a warp
  static constexpr int warps = 8, threads = 32 * warps;
};

// Where a thread stands: lane = 4 g + t has rows g and g + 8 of a tile, and eight columns.
struct GatedLane {
  int warp, lane, g, t;
  int first_column, column;  // of the warp; of this thread

  __device__ GatedLane()
      : warp(static_cast<int>(threadIdx.x / 32)),
        lane(static_cast<int>(threadIdx.x % 32)),
        g(lane / 4),
        t(lane % 4),
        first_column((static_cast<int>(blockIdx.x) * GatedTiles::warps + warp) * GatedTiles::columns),
        column(first_column + 8 * t) {}
};

// Pieces of 16 bytes that each thread has fetched for itself.
template <int Stages, int Pieces>
struct CopiesAhead {
  uint4 piece[Stages][Pieces][GatedTiles::threads];

  // Zeros where it is not inside; the address must be readable still.
  __device__ void fetch(int stage, int number, const bf16* from, bool inside) {
    paged::copy_async(paged::shared_address(&piece[stage][number][threadIdx.x]), from, inside);
  }
  __device__ uint4 get(int stage, int number) const { return piece[stage][number][threadIdx.x]; }
};

template <typename Shared>
__device__ __forceinline__ Shared& gated_shared() {
  extern __shared__ uint4 gated_shared_pieces[];
  return *reinterpret_cast<Shared*>(gated_shared_pieces);
}

// Eight neighbours of a row as memory has them, as numbers, and as halves of two mma operands: word j of the
// latter has outputs j and 4 + j.
__device__ __forceinline__ void unpack(float (&x)[8], const uint4& words) {
  const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = __uint_as_float(i % 2 == 0 ? w[i / 2] << 16 : w[i / 2] & 0xFFFF0000U);
}
__device__ __forceinline__ uint4 packed(const float (&x)[8]) {
  return make_uint4(paged::pack(x[0], x[1]), paged::pack(x[2], x[3]), paged::pack(x[4], x[5]),
                    paged::pack(x[6], x[7]));
}
__device__ __forceinline__ void as_operands(uint32_t (&operand)[4], const uint4& words) {
  operand[0] = __byte_perm(words.x, words.z, 0x5410);
  operand[1] = __byte_perm(words.x, words.z, 0x7632);
  operand[2] = __byte_perm(words.y, words.w, 0x5410);
  operand[3] = __byte_perm(words.y, words.w, 0x7632);
}

// b of a step for the warp's columns: of gate, of up; of the lower and the upper eight numbers of the rank.
struct TileB {
  uint4 words[2][2];

  __device__ void fetch(const LowRankLayer<bf16>& layer, int width, unsigned step, const GatedLane& me) {
    const int column = me.first_column + 4 * me.g;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pair = static_cast<int>(8 * step) + me.t + 4 * half;
      const bool inside = 2 * pair < layer.rank && column < width;
      const bf16* from = layer.b + (pair * layer.outputs + column) * 2;
#pragma unroll
      for (int projection = 0; projection < 2; ++projection)
        words[projection][half] =
            inside ? *reinterpret_cast<const uint4*>(from + int64_t{2} * projection * width)
                   : make_uint4(0, 0, 0, 0);
    }
  }
};

// sums[j][2 i + e] += what a step adds to row i, output 8 t + 4 e + j. low: rows, then halves of the step.
__device__ __forceinline__ void add_step(float (&sums)[4][4], const uint32_t (&low)[4], const uint4 (&b)[2]) {
  const auto add = [&](float(&sum)[4], uint32_t b0, uint32_t b1) {
    paged::multiply_add(sum, low[0], low[1], low[2], low[3], b0, b1);
  };
  add(sums[0], b[0].x, b[1].x);
  add(sums[1], b[0].y, b[1].y);
  add(sums[2], b[0].z, b[1].z);
  add(sums[3], b[0].w, b[1].w);
}
// Eight neighbours of row i are where the sums of these steps begin, and what they end in.
__device__ __forceinline__ void begin_sums(float (&sums)[4][4], const uint4& words, int i) {
  float x[8];
  unpack(x, words);
#pragma unroll
  for (int k = 0; k < 8; ++k) sums[k % 4][2 * i + k / 4] = x[k];
}
__device__ __forceinline__ void end_sums(float (&x)[8], const float (&sums)[4][4], int i) {
#pragma unroll
  for (int k = 0; k < 8; ++k) x[k] = sums[k % 4][2 * i + k / 4];
}

// ---- Forward ----

struct GatedForward {
  static constexpr int pieces = 4;

  const bf16* gate_up;
  int64_t gate_up_stride;
  int64_t row_count;
  int width;
  bf16* out;
  int64_t out_stride;
  LowRankLayer<bf16> layer;
  const bf16* down_a;  // r, F: a row is contiguous
  int64_t down_a_stride;
  float* down_low;  // column groups, rows, r: sums over the columns of a block
};

template <int Stages, int DownRank>
struct GatedForwardShared {
  CopiesAhead<Stages, GatedForward::pieces> ahead;
  static constexpr int row_length =
      DownRank == 16 ? 24 : DownRank;  // keeps the lanes of a store in other banks
  float down_sums[2][GatedTiles::warps][GatedTiles::rows][DownRank > 0 ? row_length : 1];
};

// Rows of a tile may use different adapters: numbers of low that are not a row's own count as zero, so that
// one product serves all; steps that no row of the tile needs are left out. WholeRank: 0, or the rank of the
// one adapter that every row has, whatever the ranges say.
template <int WholeRank>
struct TileRanges {
  RankRange of[2];

  __device__ void fetch(const GatedForward& work, int64_t tile, const GatedLane& me) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = tile * GatedTiles::rows + me.g + 8 * i;
      if (row >= work.row_count) {
        of[i] = {};
      } else if (WholeRank > 0) {
        of[i] = {0, WholeRank};
      } else {
        of[i] = work.layer.range_of(row);
      }
    }
  }
};

// The low-rank numbers of a tile: of the first of its steps of 16 fetched beforehand.
template <int WholeRank>
struct TileLow {
  TileRanges<WholeRank> ranges;
  unsigned first, last;  // steps; first is last or more where there are none
  uint32_t words[2][4];  // of a projection, as an operand: rows, then halves of the step

  __device__ void set(const TileRanges<WholeRank>& from) {
    ranges = from;
    if constexpr (WholeRank > 0) {
      first = 0, last = (WholeRank + 15) / 16;
      return;
    }
    unsigned begin = ~0U, end = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (ranges.of[i].begin >= ranges.of[i].end) continue;
      begin = min(begin, static_cast<unsigned>(ranges.of[i].begin));
      end = max(end, static_cast<unsigned>(ranges.of[i].end));
    }
    first = __reduce_min_sync(0xFFFFFFFFU, begin) / 16;
    last = (__reduce_max_sync(0xFFFFFFFFU, end) + 15) / 16;
  }
  __device__ void fetch(const GatedForward& work, int64_t tile, unsigned step, const GatedLane& me) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = static_cast<int>(16 * step) + 8 * half + 2 * me.t;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool own = ranges.of[i].begin <= r && r < ranges.of[i].end;
        const int64_t row = tile * GatedTiles::rows + me.g + 8 * i;
#pragma unroll
        for (int projection = 0; projection < 2; ++projection)
          words[projection][2 * half + i] =
              own ? *reinterpret_cast<const uint32_t*>(work.layer.low_of(row, projection) + r) : 0;
      }
    }
  }
};

// Block (8 groups of columns, some tiles). While a tile is computed the low-rank numbers of the next are on
// their way, and the ranges of the one after it, which say where those are. DownRank: 0, or the rank of
// the one adapter of all rows, whose low-rank numbers of down are then summed on the way.
template <int Stages, int DownRank>
__global__ void __launch_bounds__(GatedTiles::threads, 2)
    gated_forward(const __grid_constant__ GatedForward work) {
  auto& shared = gated_shared<GatedForwardShared<Stages, DownRank>>();
  auto& ahead = shared.ahead;
  const GatedLane me;
  const int64_t tiles = (work.row_count + GatedTiles::rows - 1) / GatedTiles::rows;
  const int64_t step_of_tiles = gridDim.y;
  const bf16* const my_columns = work.gate_up + min(me.column, work.width - 8);
  const auto fetch = [&](int64_t tile, int stage) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = tile * GatedTiles::rows + me.g + 8 * i;
      const bool inside = row < work.row_count && me.column < work.width;
      const bf16* from = my_columns + min(row, work.row_count - 1) * work.gate_up_stride;
      ahead.fetch(stage, 2 * i, from, inside);
      ahead.fetch(stage, 2 * i + 1, from + work.width, inside);
    }
    paged::commit_copies();
  };

  int64_t tile = blockIdx.y;
  TileRanges<DownRank> ranges, ranges_after;
  ranges.fetch(work, tile, me);
  ranges_after.fetch(work, tile + step_of_tiles, me);
  TileLow<DownRank> even, odd;
  even.set(ranges);
  TileB b;
  unsigned step_of_b = even.first;
  if (even.first < even.last) b.fetch(work.layer, work.width, even.first, me);
  constexpr int eights = DownRank / 8;
  uint32_t down_a[eights > 0 ? eights : 1][4];  // of eight numbers of the rank; as operands
#pragma unroll
  for (int eight = 0; eight < eights; ++eight) {
    const bool inside = me.column < work.width;
    const bf16* from = work.down_a + (8 * eight + me.g) * work.down_a_stride + me.column;
    as_operands(down_a[eight], inside ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0));
  }
  wait_for_previous();
  start_next();
  even.fetch(work, tile, even.first, me);
#pragma unroll
  for (int i = 0; i < Stages - 1; ++i) fetch(tile + i * step_of_tiles, i);
  int stage = 0, turn = 0;
  // False after the last tile. What is on its way stays in the registers that it goes to: moving it would
  // wait.
  const auto next_tile = [&](TileLow<DownRank>& low, TileLow<DownRank>& next) {
    next.set(ranges_after);
    next.fetch(work, tile + step_of_tiles, next.first, me);
    ranges_after.fetch(work, tile + 2 * step_of_tiles, me);
    paged::wait_for_copies<Stages - 2>();
    float gates[4][4], ups[4][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      begin_sums(gates, ahead.get(stage, 2 * i), i);
      begin_sums(ups, ahead.get(stage, 2 * i + 1), i);
    }
    fetch(tile + (Stages - 1) * step_of_tiles, (stage + Stages - 1) % Stages);
    for (unsigned step = low.first; step < low.last; ++step) {
      if (step != low.first) low.fetch(work, tile, step, me);
      if (step != step_of_b) b.fetch(work.layer, work.width, step, me);
      step_of_b = step;
      add_step(gates, low.words[0], b.words[0]);
      add_step(ups, low.words[1], b.words[1]);
    }
    uint32_t outs[2][4];  // as operands
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float gate[8], up[8];
      end_sums(gate, gates, i);
      end_sums(up, ups, i);
#pragma unroll
      for (int k = 0; k < 8; ++k) up[k] *= fast_gate(gate[k]);
      const int64_t row = tile * GatedTiles::rows + me.g + 8 * i;
      const uint4 out = packed(up);
      if constexpr (DownRank > 0) as_operands(outs[i], out);
      if (row < work.row_count && me.column < work.width)
        *reinterpret_cast<uint4*>(work.out + row * work.out_stride + me.column) = out;
    }
    if constexpr (DownRank > 0) {
#pragma unroll
      for (int eight = 0; eight < eights; ++eight) {
        float sum[4] = {};
#pragma unroll
        for (int s = 0; s < 2; ++s)
          paged::multiply_add(sum, outs[0][2 * s], outs[1][2 * s], outs[0][2 * s + 1], outs[1][2 * s + 1],
                              down_a[eight][2 * s], down_a[eight][2 * s + 1]);
        auto& to = shared.down_sums[turn][me.warp];
        const int r = 8 * eight + 2 * me.t;
        *reinterpret_cast<float2*>(&to[me.g][r]) = make_float2(sum[0], sum[1]);
        *reinterpret_cast<float2*>(&to[me.g + 8][r]) = make_float2(sum[2], sum[3]);
      }
      __syncthreads();  // also: the sums of the tile before are read
      const int r = threadIdx.x % DownRank, row_of_tile = threadIdx.x / DownRank;
      const int64_t row = tile * GatedTiles::rows + row_of_tile;
      if (row_of_tile < GatedTiles::rows && row < work.row_count) {
        float sum = 0.0F;
#pragma unroll
        for (int warp = 0; warp < GatedTiles::warps; ++warp)
          sum += shared.down_sums[turn][warp][row_of_tile][r];
        work.down_low[(blockIdx.x * work.row_count + row) * DownRank + r] = sum;
      }
      turn ^= 1;
    }
    tile += step_of_tiles;
    stage = (stage + 1) % Stages;
    return tile < tiles;
  };
  while (next_tile(even, odd) && next_tile(odd, even)) {
  }
}

}  // namespace sl::cuda
