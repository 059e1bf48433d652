// The two thin products of low-rank adapters on tensor cores, for bf16: shrink (rows by the rank) and expand
// (rows by n_out, added to out).
//
// Both read their weights and x from memory straight into the registers of mma.m16n8k16, 16 bytes a thread:
// the order of the numbers summed, or of the columns, may be permuted as long as both operands agree.
//
// Rows of a tile of 16 may use different adapters: every adapter that is present multiplies the tile with the
// rows of the others set to zero.
//
// The order of summation is fixed: n_in is cut into 64 pieces, eight neighbours are added one after the
// other, then the eight sums. With few rows eight blocks make a sum of eight pieces each (the low-rank rows
// have eight parts), and expand adds them; with many rows one block makes all. So a row's bits do not depend
// on the batch around it.
//
// Measured on one H100 80GB HBM3 with rank 8 and two adapters, in a graph, us a Lora by n_in -> n_out:
//               3584 -> 3584   3584 -> 512   3584 -> 18944   18944 -> 3584
//   64 rows              3.7           3.6             6.3             5.0   (shrink 1.7, 2.8 for 18944)
//   256 rows             5.1           4.0            15.1             8.7
//   8,192 rows            95            43             352             198
//   x, out at 3 TB/s      59            25             226             142   (8,192 rows)
// The seven of a qwen2-7b layer at 64 rows, between products that stream their weights, add 38 us to the
// layer's 163; seven kernels that do nothing add 8.
//
// Tried for those seven: one launch each, sums exchanged inside a cluster of 8 blocks, 43 us (a cluster does
// not start while the product before it runs); low-rank rows read by every warp of expand instead of once a
// block, 45 us.
#pragma once

#include "kernels/cuda/low_rank.cuh"

namespace sl::cuda::lora {

constexpr int tile_rows = 16, warps = 8, threads = 32 * warps;
constexpr int pieces = 64;         // of n_in
constexpr int step_inputs = 32;    // of a piece, a warp at a time
constexpr int group_columns = 32;  // of out, a warp at a time
constexpr int most_parts = 8;

using Layer = LowRankLayer<bf16>;
using Weights = AdapterWeights<bf16>;

__device__ __forceinline__ void multiply_add(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(both);
}
__device__ __forceinline__ float low_half(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_half(uint32_t word) { return __uint_as_float(word & 0xFFFF0000U); }

__device__ __forceinline__ uint4 load_if(bool wanted, const bf16* from) {
  return wanted ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void unpack(uint32_t (&words)[4], const uint4& four) {
  words[0] = four.x;
  words[1] = four.y;
  words[2] = four.z;
  words[3] = four.w;
}

// The two rows of a tile whose fragments a thread holds, and their adapters.
struct TileRows {
  int64_t row[2];
  int adapter[2];
  TileRows() = default;
  __device__ TileRows(const Layer& layer, int64_t tile, int lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] = tile * tile_rows + lane / 4 + 8 * i;
      adapter[i] = layer.adapter_of(row[i]);
    }
  }
  // A bit for each adapter that a row of the tile uses.
  __device__ uint32_t present() const {
    return __reduce_or_sync(
        0xFFFFFFFFU, (adapter[0] < 0 ? 0U : 1U << adapter[0]) | (adapter[1] < 0 ? 0U : 1U << adapter[1]));
  }
};

struct ShrinkWork {
  const bf16* x;
  int64_t x_stride;
  int n_in;
  Layer layer;
};

// Block (part of the sum of `Tiles` tiles, chunk of the rank). Chunk: how many times 8 of the rank.
// Batch: steps whose loads are in flight together.
template <int Chunk, int Tiles, int Batch>
__global__ void __launch_bounds__(threads, Tiles) shrink_tiles(const __grid_constant__ ShrinkWork work) {
  constexpr int chunk_rank = 8 * Chunk, numbers = Tiles * tile_rows * chunk_rank;
  __shared__ float of_warps[warps][numbers];
  const Layer& layer = work.layer;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int part = static_cast<int>(blockIdx.x) % layer.parts;
  const int64_t tile = static_cast<int64_t>(blockIdx.x / layer.parts) * Tiles;
  const int chunk = static_cast<int>(blockIdx.y) * chunk_rank;
  const int input = 8 * (lane % 4);       // of a step, the first of this thread's eight
  const int rank_row = chunk + lane / 4;  // of a, the first of this thread's
  TileRows rows[Tiles];
  uint32_t present = 0;
#pragma unroll
  for (int m = 0; m < Tiles; ++m) {
    rows[m] = TileRows(layer, tile + m, lane);
    present |= rows[m].present();
  }
  const int steps = (work.n_in + step_inputs - 1) / step_inputs;
  const auto step_of = [steps](int piece) { return steps * piece / pieces; };
  const int count = pieces / warps / layer.parts;  // pieces of this warp
  const int first_piece = (part * warps + warp) * count;

  // Adapters come from far memory, and no kernel writes them: fetched while the operation before still runs.
  for (uint32_t left = present; left != 0; left &= left - 1) {
    const Weights& w = layer.adapter[__ffs(left) - 1];
    for (int step = step_of(first_piece); step < step_of(first_piece + 1); ++step) {
      const int k = step * step_inputs + input;
      if (rank_row < w.rank && k < work.n_in)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(w.a + rank_row * w.a_stride + k));
    }
  }
  wait_for_previous();
  start_next();
  if (present == 0) return;

  float sums[Tiles][Chunk][4] = {};
  for (int piece = first_piece; piece < first_piece + count; ++piece) {
    const int end = step_of(piece + 1);
    float products[Tiles][Chunk][4] = {};
    for (uint32_t left = present; left != 0; left &= left - 1) {
      const int which = __ffs(left) - 1;
      const Weights& w = layer.adapter[which];
      for (int step = step_of(piece); step < end; step += Batch) {
        uint4 x[Batch][Tiles][2], a[Batch][Chunk];
#pragma unroll
        for (int s = 0; s < Batch; ++s) {
          const int k = (step + s) * step_inputs + input;
          const bool inside = step + s < end && k < work.n_in;
#pragma unroll
          for (int m = 0; m < Tiles; ++m) {
#pragma unroll
            for (int i = 0; i < 2; ++i)
              x[s][m][i] =
                  load_if(inside && rows[m].adapter[i] == which, work.x + rows[m].row[i] * work.x_stride + k);
          }
#pragma unroll
          for (int n = 0; n < Chunk; ++n)
            a[s][n] = load_if(inside && rank_row + 8 * n < w.rank, w.a + (rank_row + 8 * n) * w.a_stride + k);
        }
#pragma unroll
        for (int s = 0; s < Batch; ++s) {
#pragma unroll
          for (int m = 0; m < Tiles; ++m) {
            const uint4 x0 = x[s][m][0], x1 = x[s][m][1];
#pragma unroll
            for (int n = 0; n < Chunk; ++n) {
              multiply_add(products[m][n], x0.x, x1.x, x0.y, x1.y, a[s][n].x, a[s][n].y);
              multiply_add(products[m][n], x0.z, x1.z, x0.w, x1.w, a[s][n].z, a[s][n].w);
            }
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < Tiles; ++m) {
#pragma unroll
      for (int n = 0; n < Chunk; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m][n][e] += products[m][n][e];
      }
    }
  }
#pragma unroll
  for (int m = 0; m < Tiles; ++m) {
#pragma unroll
    for (int n = 0; n < Chunk; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<float2*>(
            &of_warps[warp][(m * tile_rows + lane / 4 + 8 * i) * chunk_rank + 8 * n + 2 * (lane % 4)]) =
            make_float2(sums[m][n][2 * i], sums[m][n][2 * i + 1]);
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < numbers; i += threads) {
    const int64_t row = tile * tile_rows + i / chunk_rank;
    const int r = chunk + i % chunk_rank;
    if (row >= layer.rows || r >= layer.low_stride) continue;
    float sum = 0.0F;
#pragma unroll
    for (int w = 0; w < warps; ++w) sum += of_warps[w][i];
    layer.low_row(part, row)[r] = sum;
  }
}

// Low-rank rows in shared memory, scaled, ready as the left operand of expand. They stay f32 up to that
// product: each number is the sum of two bf16 numbers, `high` and `rest`, which take the two halves of the
// product's depth of 16: exact to 16 bits for the price of one product.
struct StagedRows {
  uint32_t *high, *rest;  // two numbers a word
  int pairs, stride;      // words of a row; between rows, so that eight rows read in different banks

  // Words of shared memory for so many rows.
  static __host__ __device__ int stride_for(int rank) { return rank / 2 | 4; }
  __device__ StagedRows(uint32_t* shared, int rank, int rows)
      : high(shared), rest(shared + rows * stride_for(rank)), pairs(rank / 2), stride(stride_for(rank)) {}

  // All threads of the block; a barrier must follow.
  template <int Parts>
  __device__ void fill(const Layer& layer, int64_t first_row, int rows) const {
    for (int i = static_cast<int>(threadIdx.x); i < rows * pairs; i += threads) {
      const int64_t row = first_row + i / pairs;
      const int pair = i % pairs, which = layer.adapter_of(row);
      float2 sum = make_float2(0.0F, 0.0F);
      if (which >= 0 && 2 * pair < layer.adapter[which].rank) {
        float2 of_parts[Parts];
#pragma unroll
        for (int p = 0; p < Parts; ++p)
          of_parts[p] = reinterpret_cast<const float2*>(layer.low_row(p, row))[pair];
#pragma unroll
        for (int p = 0; p < Parts; ++p) sum = make_float2(sum.x + of_parts[p].x, sum.y + of_parts[p].y);
        const float scale = layer.adapter[which].scale;
        sum = make_float2(scale * sum.x, scale * sum.y);
      }
      const uint32_t word = pack(sum.x, sum.y);
      high[i / pairs * stride + pair] = word;
      rest[i / pairs * stride + pair] = pack(sum.x - low_half(word), sum.y - high_half(word));
    }
  }
};

// One warp's product of a tile with 32 columns of a layer. In mma number j, column n of the product stands
// for column 8 (n / 2) + 2 j + n % 2 of the group, so that a thread ends up with eight neighbours of its two
// rows.
class ExpandGroup {
 public:
  __device__ ExpandGroup(const Layer& layer, int n_out, int first_column, int lane)
      : layer_(layer), n_out_(n_out), first_(first_column), lane_(lane) {}

  // Fetches b of the adapter that is likely to come first.
  __device__ void fetch(int which) {
    kept_of_ = which;
    load(kept_, which, 0);
  }

  // sums[j][2 i + e]: row i of this thread, column 8 (lane % 4) + 2 j + e of the group.
  __device__ void multiply(float (&sums)[4][4], const TileRows& rows, uint32_t present,
                           const StagedRows& staged, int staged_row) {
    for (; present != 0; present &= present - 1) {
      const int which = __ffs(present) - 1, rank = layer_.adapter[which].rank;
      if (which != kept_of_) fetch(which);
      for (int r = 0; r < rank; r += 32) {
        if (r > 0) load(kept_, which, r);
        uint32_t high[2][4] = {}, rest[2][4] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int word = (staged_row + lane_ / 4 + 8 * i) * staged.stride + r / 2 + 4 * (lane_ % 4);
          if (rows.adapter[i] == which && r + 8 * (lane_ % 4) < rank) {
            unpack(high[i], *reinterpret_cast<const uint4*>(staged.high + word));
            unpack(rest[i], *reinterpret_cast<const uint4*>(staged.rest + word));
          }
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int j = 0; j < 4; ++j)
            multiply_add(sums[j], high[0][k], high[1][k], rest[0][k], rest[1][k], kept_[j][k], kept_[j][k]);
        }
      }
      if (rank > 32) kept_of_ = -1;
    }
  }

 private:
  __device__ void load(uint32_t (&b)[4][4], int which, int r) const {
    const Weights& w = layer_.adapter[which];
    r += 8 * (lane_ % 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int column = first_ + 8 * (lane_ / 8) + 2 * j + lane_ / 4 % 2;
      unpack(b[j], load_if(column < n_out_ && r < w.rank, w.b + column * w.b_stride + r));
    }
  }

  const Layer& layer_;
  int n_out_, first_, lane_, kept_of_ = -1;
  uint32_t kept_[4][4];
};

struct ExpandWork {
  bf16* out;
  int64_t out_stride;
  int n_out;
  int tiles;  // of a block
  int rank;   // the largest
  Layer layer;
};

// Block (8 groups of columns, some tiles).
template <int Parts>
__global__ void __launch_bounds__(threads) expand_tiles(const __grid_constant__ ExpandWork work) {
  extern __shared__ __align__(16) uint32_t shared[];
  const Layer& layer = work.layer;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int block_column = static_cast<int>(blockIdx.x) * warps * group_columns;
  const int first_column = block_column + warp * group_columns;
  const int column = first_column + 8 * (lane % 4);  // the first of this thread's eight
  const int64_t first_tile = int64_t{blockIdx.y} * work.tiles;
  const StagedRows staged(shared, work.rank, work.tiles * tile_rows);
  ExpandGroup group(layer, work.n_out, first_column, lane);
  TileRows rows(layer, first_tile, lane);
  uint32_t present = rows.present();
  group.fetch(max(__ffs(present) - 1, 0));
  wait_for_previous();
  start_next();
  if (block_column >= work.n_out) return;
  uint4 out[2];
  const auto load_out = [&] {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      out[i] = load_if(rows.adapter[i] >= 0 && column < work.n_out,
                       work.out + rows.row[i] * work.out_stride + column);
  };
  load_out();
  staged.fill<Parts>(layer, first_tile * tile_rows, work.tiles * tile_rows);
  __syncthreads();
  for (int tile = 0;;) {
    if (present != 0) {
      float sums[4][4] = {};
      group.multiply(sums, rows, present, staged, tile * tile_rows);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (rows.adapter[i] < 0 || column >= work.n_out) continue;
        uint32_t words[4];
        unpack(words, out[i]);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          words[j] = pack(low_half(words[j]) + sums[j][2 * i], high_half(words[j]) + sums[j][2 * i + 1]);
        *reinterpret_cast<uint4*>(work.out + rows.row[i] * work.out_stride + column) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
    if (++tile == work.tiles) return;
    rows = TileRows(layer, first_tile + tile, lane);
    present = rows.present();
    load_out();
  }
}

}  // namespace sl::cuda::lora
