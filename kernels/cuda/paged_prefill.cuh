// Attention of prompt chunks: sequences with several rows in the batch, each row seeing the context up to
// itself. Bound by products, in the manner of FlashAttention-2 (Dao 2023) with tensor-core products of a
// warp.
//
// A block owns a tile of 128 pairs (row, query head) of one key-value head: GQA packs the heads of a group
// into the tile, so a short chunk fills it too and keys are read once for the group. It walks the context in
// tiles of 64 tokens, copied from the pages two deep while the tile before is multiplied. Four warps own 32
// pairs each, so that a fragment of keys or values read from shared memory serves two products.
#pragma once

#include "kernels/cuda/paged_mma.cuh"
#include "kernels/cuda/paged_plan.cuh"

namespace sl::cuda::paged {

constexpr int tile_tokens = 64;
constexpr int prefill_warps = 4;

struct PrefillArguments {
  const bf16* qkv;
  int64_t qkv_stride;
  const bf16* key_pages;
  const bf16* value_pages;
  const int* query_offsets;
  const int* context_lengths;
  const int* page_tables;
  int64_t table_stride;
  bf16* out;
  int64_t out_stride;
  const int* plan;
  int key_heads, group;
  int stages_a_page;        // pages in units of 16 tokens
  uint64_t inverse_stages;  // ceil(2^32 / stages_a_page)
  float scale_log2;
};

template <int head_dim>
class PrefillBlock {
  static constexpr int chunks = head_dim / 8;  // of 16 bytes in a row
  static constexpr int threads = 32 * prefill_warps;
  static constexpr int rows_a_pass = threads / chunks;
  static constexpr int warp_pairs = tile_pairs / prefill_warps;
  static constexpr int row_tiles = warp_pairs / 16;
  static constexpr int query_bytes = tile_pairs * head_dim * 2;
  static constexpr int tile_bytes = tile_tokens * head_dim * 2;  // keys, or values
  static constexpr unsigned whole_warp = 0xFFFFFFFFU;

 public:
  static constexpr int shared_bytes = query_bytes + 4 * tile_bytes;

  __device__ PrefillBlock(const PrefillArguments& arguments, const PrefillTile& tile, int head,
                          uint32_t memory)
      : a_(arguments),
        head_(head),
        first_row_(tile.first_row),
        queries_(memory),
        ring_(memory + query_bytes),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32) {
    const int begin = a_.query_offsets[tile.sequence], end = a_.query_offsets[tile.sequence + 1];
    rows_ = min(tile_rows(a_.group), end - begin - first_row_);
    before_ = a_.context_lengths[tile.sequence] - (end - begin) + first_row_;
    first_row_ += begin;
    visible_ = before_ + rows_;
    table_ = a_.page_tables + tile.sequence * a_.table_stride;
  }

  __device__ void run() {
    load_queries();
    const int tiles = (max(visible_, 0) + tile_tokens - 1) / tile_tokens;
    if (tiles > 0) load_tile(0);
    commit_copies();
    int row_visible[row_tiles][2];  // tokens that rows g and g + 8 of each row tile see
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int pair = warp_ * warp_pairs + 16 * m + 8 * h + lane_ / 4;
        row_visible[m][h] = before_ + min(pair / a_.group, rows_ - 1) + 1;
      }
    }
    // Tiles that even the first row of this warp sees whole need no mask.
    const int unmasked = (before_ + warp_ * warp_pairs / a_.group + 1) / tile_tokens;
    for (int tile = 0; tile < tiles; ++tile) {
      wait_for_copies<0>();
      __syncthreads();  // the tile is here for all, and the one before is no longer read
      if (tile + 1 < tiles) load_tile(tile + 1);
      commit_copies();
      attend(tile, tile >= unmasked, row_visible);
    }
    wait_for_copies<0>();
    store();
  }

 private:
  // Rows of head_dim numbers lie in shared memory with their 16-byte pieces permuted, so that reading one
  // column of pieces from 8 rows touches all banks.
  __device__ static uint32_t place(int row, int chunk) {
    return static_cast<uint32_t>(row * chunks + (chunk ^ (row % 8))) * 16;
  }

  __device__ void load_queries() {
    const int chunk = threadIdx.x % chunks;
#pragma unroll
    for (int i = 0; i < tile_pairs / rows_a_pass; ++i) {
      const int pair = threadIdx.x / chunks + i * rows_a_pass;
      const bool valid = pair < rows_ * a_.group;
      copy_async(queries_ + place(pair, chunk),
                 valid ? address(a_.qkv, a_.qkv_stride, pair) + 8 * chunk : a_.qkv, valid);
    }
  }

  template <typename Element>
  __device__ Element* address(Element* rows, int64_t stride, int pair) const {
    const int row = pair / a_.group;
    return rows + (first_row_ + row) * stride + int64_t{head_ * a_.group + pair - row * a_.group} * head_dim;
  }

  __device__ void load_tile(int tile) {
    const uint32_t keys = ring_ + (tile % 2) * 2 * tile_bytes;
    const int chunk = threadIdx.x % chunks, row = threadIdx.x / chunks;
#pragma unroll
    for (int block = 0; block < tile_tokens / 16; ++block) {
      int index = tile * (tile_tokens / 16) + block;
      if (index * 16 >= visible_) index = 0;  // any page that exists: nothing is read
      const auto page = static_cast<uint32_t>((static_cast<uint64_t>(index) * a_.inverse_stages) >> 32);
      const int64_t source = ((static_cast<int64_t>(table_[page]) * a_.key_heads + head_) * a_.stages_a_page +
                              (index - static_cast<int>(page) * a_.stages_a_page)) *
                                 (16 * head_dim) +
                             row * head_dim + 8 * chunk;
#pragma unroll
      for (int i = 0; i < 16 / rows_a_pass; ++i) {
        const int local = block * 16 + i * rows_a_pass + row;
        const bool valid = tile * tile_tokens + local < visible_;
        const int64_t from = source + i * rows_a_pass * head_dim;
        copy_async(keys + place(local, chunk), a_.key_pages + from, valid);
        copy_async(keys + tile_bytes + place(local, chunk), a_.value_pages + from, valid);
      }
    }
  }

  __device__ void attend(int tile, bool masked, const int (&row_visible)[row_tiles][2]) {
    const uint32_t keys = ring_ + (tile % 2) * 2 * tile_bytes, values = keys + tile_bytes;
    const int in_matrix = lane_ % 8, matrix = lane_ / 8;
    float scores[row_tiles][tile_tokens / 8][4] = {};
#pragma unroll
    for (int k = 0; k < head_dim / 16; ++k) {
      uint32_t q[row_tiles][4];
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
        load_matrices(q[m], queries_ + place(warp_ * warp_pairs + 16 * m + matrix % 2 * 8 + in_matrix,
                                             2 * k + matrix / 2));
      }
#pragma unroll
      for (int n = 0; n < tile_tokens / 16; ++n) {
        uint32_t x[4];
        load_matrices(x, keys + place(16 * n + matrix / 2 * 8 + in_matrix, 2 * k + matrix % 2));
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
          multiply_add(scores[m][2 * n], q[m][0], q[m][1], q[m][2], q[m][3], x[0], x[1]);
          multiply_add(scores[m][2 * n + 1], q[m][0], q[m][1], q[m][2], q[m][3], x[2], x[3]);
        }
      }
    }
    if (masked) mask(tile, row_visible, scores);
    soften(scores);
#pragma unroll
    for (int k = 0; k < tile_tokens / 16; ++k) {
      uint32_t p[row_tiles][4];
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          p[m][i] = pack(scores[m][2 * k + i / 2][i % 2 * 2], scores[m][2 * k + i / 2][i % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int n = 0; n < head_dim / 16; ++n) {
        uint32_t x[4];
        load_matrices_transposed(x, values + place(16 * k + matrix % 2 * 8 + in_matrix, 2 * n + matrix / 2));
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
          multiply_add(sums_[m][2 * n], p[m][0], p[m][1], p[m][2], p[m][3], x[0], x[1]);
          multiply_add(sums_[m][2 * n + 1], p[m][0], p[m][1], p[m][2], p[m][3], x[2], x[3]);
        }
      }
    }
  }

  __device__ void mask(int tile, const int (&row_visible)[row_tiles][2],
                       float (&scores)[row_tiles][tile_tokens / 8][4]) const {
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int n = 0; n < tile_tokens / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int token = tile * tile_tokens + 8 * n + lane_ % 4 * 2 + e % 2;
          if (token >= row_visible[m][e / 2]) scores[m][n][e] = -INFINITY;
        }
      }
    }
  }

  // Scores to weights exp(score - largest), the running softmax with them. Every row sees token 0, so
  // `largest` is finite from the first tile on.
  __device__ void soften(float (&scores)[row_tiles][tile_tokens / 8][4]) {
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float largest = largest_[m][h];
#pragma unroll
        for (int n = 0; n < tile_tokens / 8; ++n) {
          largest = fmaxf(largest, fmaxf(scores[m][n][2 * h], scores[m][n][2 * h + 1]));
        }
        largest = fmaxf(largest, __shfl_xor_sync(whole_warp, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(whole_warp, largest, 2));
        const float factor = exp2_fast((largest_[m][h] - largest) * a_.scale_log2);
        largest_[m][h] = largest;
        const float shift = largest * a_.scale_log2;
        float total = 0.0F;
#pragma unroll
        for (int n = 0; n < tile_tokens / 8; ++n) {
#pragma unroll
          for (int e = 2 * h; e < 2 * h + 2; ++e) {
            scores[m][n][e] = exp2_fast(scores[m][n][e] * a_.scale_log2 - shift);
            total += scores[m][n][e];
          }
        }
        total_[m][h] = total_[m][h] * factor + total;
#pragma unroll
        for (int n = 0; n < head_dim / 8; ++n) {
          sums_[m][n][2 * h] *= factor;
          sums_[m][n][2 * h + 1] *= factor;
        }
      }
    }
  }

  // Through this warp's part of the queries' memory, so that 16 bytes are stored at once.
  __device__ void store() {
    __syncwarp();
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float total = total_[m][h];
        total += __shfl_xor_sync(whole_warp, total, 1);
        total += __shfl_xor_sync(whole_warp, total, 2);
        const float inverse = total == 0.0F ? 0.0F : 1.0F / total;  // 0: no context
        const int local = warp_ * warp_pairs + 16 * m + 8 * h + lane_ / 4;
#pragma unroll
        for (int n = 0; n < head_dim / 8; ++n) {
          const uint32_t value = pack(sums_[m][n][2 * h] * inverse, sums_[m][n][2 * h + 1] * inverse);
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(queries_ + place(local, n) + lane_ % 4 * 4), "r"(value)
                       : "memory");
        }
      }
    }
    __syncwarp();
    constexpr int rows_at_once = 32 / chunks;
#pragma unroll 4
    for (int i = 0; i < warp_pairs / rows_at_once; ++i) {
      const int local = warp_ * warp_pairs + i * rows_at_once + lane_ / chunks, chunk = lane_ % chunks;
      if (local >= rows_ * a_.group) break;
      uint4 x;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                   : "r"(queries_ + place(local, chunk))
                   : "memory");
      *reinterpret_cast<uint4*>(address(a_.out, a_.out_stride, local) + 8 * chunk) = x;
    }
  }

  const PrefillArguments& a_;
  int head_;
  int first_row_, rows_;  // of the tile
  uint32_t queries_, ring_;
  int warp_, lane_;
  int before_, visible_;  // tokens before the first row, and that the last row sees
  const int* table_;
  float sums_[row_tiles][head_dim / 8][4] = {};
  float total_[row_tiles][2] = {};
  float largest_[row_tiles][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}};
};

template <int head_dim>
__global__ void __launch_bounds__(32 * prefill_warps, 2)
    prefill_kernel(const __grid_constant__ PrefillArguments arguments) {
  extern __shared__ __align__(128) unsigned char memory[];
  wait_for_previous();
  start_next();
  const int tile = blockIdx.x / arguments.key_heads;
  if (tile >= arguments.plan[tile_count]) return;
  const int* at = arguments.plan + arguments.plan[tiles_begin] + 2 * int64_t{tile};
  PrefillBlock<head_dim>(arguments, {at[0], at[1]}, blockIdx.x % arguments.key_heads, shared_address(memory))
      .run();
}

}  // namespace sl::cuda::paged
