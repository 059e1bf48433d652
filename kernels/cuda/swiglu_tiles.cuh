// The gated activation of bf16 rows with adapters on gate and up: a warp adds the low-rank parts to 16 rows
// by 32 columns with tensor cores (mma.m16n8k16), 16 numbers of the rank at a time, before the activation.
//
// Rows of a tile may use different adapters: numbers of low that are not a row's own count as zero, so that
// one product serves all; steps that no row of the tile needs are left out. Operands go from memory straight
// into the fragments of the mma. In product number j, column n stands for output 4 n + j of the warp's 32: so
// a thread reads b of four neighbouring outputs at once, and ends up with eight neighbours of its two rows.
#pragma once

#include "kernels/cuda/low_rank.cuh"

namespace sl::cuda {

struct GatedTiles {
  static constexpr int rows = 16, columns = 32;  // of a warp
  static constexpr int warps = 8, threads = 32 * warps;

  bf16* gate_up;
  int64_t gate_up_stride;
  int64_t row_count;
  int width;
  bf16* out;
  int64_t out_stride;
  LowRankLayer<bf16> layer;
  bool keep;  // the adapted gates and ups go back to gate_up
};

__device__ inline float gate_of(float x) { return __fdividef(x, 1.0F + __expf(-x)); }

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The two rows of a tile whose fragments a thread holds, and the steps of 16 numbers of the rank that some
// row of the tile needs.
struct TileRows {
  int64_t row[2];
  RankRange range[2];
  unsigned first_step, last_step;

  __device__ TileRows(const GatedTiles& work, int64_t tile, int lane) {
    unsigned begin = ~0U, end = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] = tile * GatedTiles::rows + lane / 4 + 8 * i;
      if (row[i] < work.row_count) range[i] = work.layer.range_of(row[i]);
      if (range[i].begin >= range[i].end) continue;
      begin = min(begin, static_cast<unsigned>(range[i].begin));
      end = max(end, static_cast<unsigned>(range[i].end));
    }
    first_step = __reduce_min_sync(0xFFFFFFFFU, begin) / 16;
    last_step = (__reduce_max_sync(0xFFFFFFFFU, end) + 15) / 16;
  }
};

// b of a step for the warp's columns: of gate, of up; of the lower and the upper eight numbers of the rank.
struct TileB {
  uint4 words[2][2];

  __device__ void fetch(const GatedTiles& work, unsigned step, int first_column, int lane) {
    const int column = first_column + 4 * (lane / 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pair = static_cast<int>(8 * step) + lane % 4 + 4 * half;
      const bool inside = 2 * pair < work.layer.rank && column < work.width;
      const bf16* from = work.layer.b + (pair * work.layer.outputs + column) * 2;
#pragma unroll
      for (int projection = 0; projection < 2; ++projection)
        words[projection][half] =
            inside ? *reinterpret_cast<const uint4*>(from + int64_t{2} * projection * work.width)
                   : make_uint4(0, 0, 0, 0);
    }
  }
};

// sums[j][2 i + e] += what the step adds to row i, output 8 (lane % 4) + 4 e + j.
__device__ __forceinline__ void add_step(float (&sums)[4][4], const GatedTiles& work, const TileRows& rows,
                                         int projection, unsigned step, const uint4 (&b)[2], int lane) {
  uint32_t low[4];  // rows, then halves of the step
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = static_cast<int>(16 * step) + 8 * half + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool own = rows.range[i].begin <= r && r < rows.range[i].end;
      low[2 * half + i] =
          own ? *reinterpret_cast<const uint32_t*>(work.layer.low_of(rows.row[i], projection) + r) : 0;
    }
  }
  multiply_add(sums[0], low, b[0].x, b[1].x);
  multiply_add(sums[1], low, b[0].y, b[1].y);
  multiply_add(sums[2], low, b[0].z, b[1].z);
  multiply_add(sums[3], low, b[0].w, b[1].w);
}

// Block (8 groups of columns, some tiles).
__global__ void __launch_bounds__(GatedTiles::threads, 2)
    gated_tiles(const __grid_constant__ GatedTiles work) {
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int first_column = (static_cast<int>(blockIdx.x) * GatedTiles::warps + warp) * GatedTiles::columns;
  const int column = first_column + 8 * (lane % 4);  // the first of this thread's eight
  const int64_t tiles = (work.row_count + GatedTiles::rows - 1) / GatedTiles::rows;
  int64_t tile = blockIdx.y;
  TileRows rows(work, tile, lane);
  TileB b;
  unsigned step_of_b = rows.first_step;
  if (step_of_b < rows.last_step) b.fetch(work, step_of_b, first_column, lane);
  wait_for_previous();
  start_next();
  for (;;) {
    float gates[2][8] = {}, ups[2][8] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (rows.row[i] >= work.row_count || column >= work.width) continue;
      const bf16* from = work.gate_up + rows.row[i] * work.gate_up_stride + column;
      load(gates[i], from);
      load(ups[i], from + work.width);
    }
    float gate_sums[4][4] = {}, up_sums[4][4] = {};
    for (unsigned step = rows.first_step; step < rows.last_step; ++step) {
      if (step != step_of_b) b.fetch(work, step, first_column, lane);
      step_of_b = step;
      add_step(gate_sums, work, rows, 0, step, b.words[0], lane);
      add_step(up_sums, work, rows, 1, step, b.words[1], lane);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (rows.row[i] >= work.row_count || column >= work.width) continue;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          gates[i][4 * e + j] += gate_sums[j][2 * i + e];
          ups[i][4 * e + j] += up_sums[j][2 * i + e];
        }
      }
      if (work.keep) {
        bf16* to = work.gate_up + rows.row[i] * work.gate_up_stride + column;
        store(to, gates[i]);
        store(to + work.width, ups[i]);
#pragma unroll
        for (int k = 0; k < 8; ++k) {  // the activation of what is kept
          gates[i][k] = to_float(from_float<bf16>(gates[i][k]));
          ups[i][k] = to_float(from_float<bf16>(ups[i][k]));
        }
      }
#pragma unroll
      for (int k = 0; k < 8; ++k) ups[i][k] *= gate_of(gates[i][k]);
      store(work.out + rows.row[i] * work.out_stride + column, ups[i]);
    }
    tile += gridDim.y;
    if (tile >= tiles) return;
    rows = TileRows(work, tile, lane);
  }
}

}  // namespace sl::cuda
