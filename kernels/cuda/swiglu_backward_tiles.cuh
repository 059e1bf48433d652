// The gradient of the gated activation of bf16 rows with one adapter of rank 8 or 16 on gate and up, and
// those of its B and of its low-rank numbers, from one reading of everything.
//
// A block takes 256 columns of some tiles of rows (swiglu_tiles.cuh). The low-rank parts are added again, as
// forward does. The gradients of gate and up, rounded, are then operands where they lie: as they are for
// those of the low-rank numbers (sums over columns), transposed across the warp for those of B (sums over
// rows, which stay in registers until the last tile). The sums of the low-rank numbers over the block's
// columns and those of B over its rows go to scratch, to be added up in a fixed order (low_rank_sums.cuh).
#pragma once

#include "kernels/cuda/swiglu_tiles.cuh"

namespace sl::cuda {

struct GatedBackward {
  const bf16* gate_up;
  int64_t gate_up_stride;
  const bf16* grad_out;
  int64_t grad_out_stride;
  bf16* grad;  // may be gate_up: a thread reads its elements before it writes
  int64_t grad_stride;
  int64_t row_count;
  int width;
  LowRankLayer<bf16> layer;  // ranges are not looked at: every row has all of the rank
  const bf16* down_grad_low;
  int64_t down_grad_low_stride;
  static constexpr int matrices = 3;  // B of gate and of up, A of down
  float* grad_b;                      // row groups, matrices * F, R
  float* grad_low;                    // column groups, rows, 2R
};

template <int R>
struct GatedBackwardShared {
  static constexpr int stages = 3, pieces = 6;
  CopiesAhead<stages, pieces> ahead;
  // The low-rank numbers of gate and up, and the gradient of down's: as operands, rows, then eights of the
  // rank. All warps read these.
  static constexpr int low_pieces = GatedBackward::matrices * R / 4;
  uint32_t low[stages][low_pieces][32];
  // The 8 floats between rows keep the lanes of a store in different banks.
  float low_sums[2][GatedTiles::warps][GatedTiles::rows][2 * R + 8];
};

// Block (8 groups of columns, a group of tiles).
template <int R>
__global__ void __launch_bounds__(GatedTiles::threads, R == 8 ? 2 : 1)
    gated_backward(const __grid_constant__ GatedBackward work) {
  using Shared = GatedBackwardShared<R>;
  constexpr int stages = Shared::stages, eights = R / 8;
  auto& shared = gated_shared<Shared>();
  const GatedLane me;
  const int64_t tiles = (work.row_count + GatedTiles::rows - 1) / GatedTiles::rows;
  const int near_column = min(me.column, work.width - 8);
  const auto fetch = [&](int64_t tile, int stage) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = tile * GatedTiles::rows + me.g + 8 * i, near_row = min(row, work.row_count - 1);
      const bool inside = row < work.row_count && me.column < work.width;
      const bf16* gate = work.gate_up + near_row * work.gate_up_stride + near_column;
      shared.ahead.fetch(stage, i, gate, inside);
      shared.ahead.fetch(stage, 2 + i, gate + work.width, inside);
      shared.ahead.fetch(stage, 4 + i, work.grad_out + near_row * work.grad_out_stride + near_column, inside);
    }
    for (int piece = me.warp; piece < Shared::low_pieces; piece += GatedTiles::warps) {
      const int matrix = piece / (R / 4), eight = piece % (R / 4) / 2, i = piece % 2;
      const int64_t row = tile * GatedTiles::rows + me.g + 8 * i, near_row = min(row, work.row_count - 1);
      const bf16* from = matrix < 2 ? work.layer.low_of(near_row, matrix)
                                    : work.down_grad_low + near_row * work.down_grad_low_stride;
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(
                       paged::shared_address(&shared.low[stage][piece][me.lane])),
                   "l"(from + 8 * eight + 2 * me.t), "r"(row < work.row_count ? 4 : 0)
                   : "memory");
    }
    paged::commit_copies();
  };
  // Of the low-rank numbers of a tile, over the block's columns.
  const auto sum_up = [&](int64_t tile, int turn) {
#pragma unroll
    for (int i = 0; i < eights; ++i) {
      const int element = static_cast<int>(threadIdx.x) + i * GatedTiles::threads;
      const int r = element % (2 * R);
      const int64_t row = tile * GatedTiles::rows + element / (2 * R);
      float sum = 0.0F;
#pragma unroll
      for (int warp = 0; warp < GatedTiles::warps; ++warp)
        sum += shared.low_sums[turn][warp][element / (2 * R)][r];
      if (row < work.row_count) work.grad_low[(blockIdx.x * work.row_count + row) * (2 * R) + r] = sum;
    }
  };

  TileB b;
  b.fetch(work.layer, work.width, 0, me);
  uint32_t b_transposed[2][4][eights];  // of product j: its columns, and eight numbers of the rank
#pragma unroll
  for (int projection = 0; projection < 2; ++projection) {
#pragma unroll
    for (int eight = 0; eight < eights; ++eight) {
      const uint4& words = b.words[projection][eight];
      b_transposed[projection][0][eight] = paged::transpose(words.x);
      b_transposed[projection][1][eight] = paged::transpose(words.y);
      b_transposed[projection][2][eight] = paged::transpose(words.z);
      b_transposed[projection][3][eight] = paged::transpose(words.w);
    }
  }
  wait_for_previous();
  start_next();

  float b_sums[GatedBackward::matrices][2][eights][4] = {};  // of products 2 s and 2 s + 1
  int64_t tile = blockIdx.y;
#pragma unroll
  for (int i = 0; i < stages - 1; ++i) fetch(tile + int64_t{i} * gridDim.y, i);
  paged::wait_for_copies<stages - 2>();
  __syncthreads();
  for (int stage = 0, turn = 0; tile < tiles; tile += gridDim.y, stage = (stage + 1) % stages, turn ^= 1) {
    uint32_t low[GatedBackward::matrices][4] = {};  // rows, then eights of the rank
    float sums[2][4][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      begin_sums(sums[0], shared.ahead.get(stage, i), i);
      begin_sums(sums[1], shared.ahead.get(stage, 2 + i), i);
    }
#pragma unroll
    for (int matrix = 0; matrix < GatedBackward::matrices; ++matrix) {
#pragma unroll
      for (int k = 0; k < 2 * eights; ++k) low[matrix][k] = shared.low[stage][matrix * (R / 4) + k][me.lane];
      if (matrix < 2) add_step(sums[matrix], low[matrix], b.words[matrix]);
    }

    // Of the gradients of gate and up, and of the product; of a row.
    uint32_t operands[GatedBackward::matrices][2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float gate[8], up[8], grad_out[8], product[8];
      end_sums(gate, sums[0], i);
      end_sums(up, sums[1], i);
      unpack(grad_out, shared.ahead.get(stage, 4 + i));
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float g = gate[k], s = fast_sigmoid(g);
        product[k] = up[k] * (g * s);
        gate[k] = grad_out[k] * up[k] * s * (1.0F + g * (1.0F - s));
        up[k] = grad_out[k] * g * s;
      }
      const uint4 grad_gate = packed(gate), grad_up = packed(up);
      as_operands(operands[0][i], grad_gate);
      as_operands(operands[1][i], grad_up);
      as_operands(operands[2][i], packed(product));
      const int64_t row = tile * GatedTiles::rows + me.g + 8 * i;
      if (row < work.row_count && me.column < work.width) {
        bf16* to = work.grad + row * work.grad_stride + me.column;
        *reinterpret_cast<uint4*>(to) = grad_gate;
        *reinterpret_cast<uint4*>(to + work.width) = grad_up;
      }
    }
    fetch(tile + int64_t{stages - 1} * gridDim.y, (stage + stages - 1) % stages);
#pragma unroll
    for (int matrix = 0; matrix < GatedBackward::matrices; ++matrix) {
      const auto& x = operands[matrix];
      uint32_t low_transposed[eights][2];
      float low_sums[eights][4] = {};
#pragma unroll
      for (int eight = 0; eight < eights; ++eight) {
        low_transposed[eight][0] = paged::transpose(low[matrix][2 * eight]);
        low_transposed[eight][1] = paged::transpose(low[matrix][2 * eight + 1]);
      }
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const uint32_t a0 = paged::transpose(x[0][2 * s]), a1 = paged::transpose(x[0][2 * s + 1]),
                       a2 = paged::transpose(x[1][2 * s]), a3 = paged::transpose(x[1][2 * s + 1]);
#pragma unroll
        for (int eight = 0; eight < eights; ++eight) {
          if (matrix < 2)
            paged::multiply_add(low_sums[eight], x[0][2 * s], x[1][2 * s], x[0][2 * s + 1], x[1][2 * s + 1],
                                b_transposed[matrix][2 * s][eight], b_transposed[matrix][2 * s + 1][eight]);
          paged::multiply_add(b_sums[matrix][s][eight], a0, a1, a2, a3, low_transposed[eight][0],
                              low_transposed[eight][1]);
        }
      }
      if (matrix == 2) continue;
#pragma unroll
      for (int eight = 0; eight < eights; ++eight) {
        const int r = matrix * R + 8 * eight + 2 * me.t;
        auto& to = shared.low_sums[turn][me.warp];
        *reinterpret_cast<float2*>(&to[me.g][r]) = make_float2(low_sums[eight][0], low_sums[eight][1]);
        *reinterpret_cast<float2*>(&to[me.g + 8][r]) = make_float2(low_sums[eight][2], low_sums[eight][3]);
      }
    }
    paged::wait_for_copies<stages - 2>();
    __syncthreads();  // the next tile is there; the sums of the tile before are read
    sum_up(tile, turn);
  }

#pragma unroll
  for (int matrix = 0; matrix < GatedBackward::matrices; ++matrix) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int output = me.first_column + 4 * me.g + j;
      if (output >= work.width) continue;
      float* to = work.grad_b +
                  ((blockIdx.y * int64_t{GatedBackward::matrices} + matrix) * work.width + output) * R +
                  2 * me.t;
#pragma unroll
      for (int eight = 0; eight < eights; ++eight) {
        const auto& sum = b_sums[matrix][j / 2][eight];
        *reinterpret_cast<float2*>(to + 8 * eight) = make_float2(sum[2 * (j % 2)], sum[2 * (j % 2) + 1]);
      }
    }
  }
}

}  // namespace sl::cuda
