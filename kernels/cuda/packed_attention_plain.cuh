// The plain path's pieces: tiles of 64 rows in shared memory as floats, products of 64 x 64 by 256 threads of
// which each has 4 x 4 numbers. Any head dimension up to 256, f32 and bf16, any alignment, any GPU.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/packed_tiles.cuh"

namespace sl::cuda {

constexpr int plain_rows = 64;
constexpr int plain_threads = 256;
constexpr int plain_pitch = plain_rows + 4;  // floats between the rows of a transposed tile

// Rows first .. first + 64 of a matrix part, those before `end`, the others 0: tile[column][row].
template <typename T>
__device__ void load_transposed(float* tile, const T* part, int64_t stride, int64_t first, int64_t end,
                                int columns) {
  for (int i = threadIdx.x; i < plain_rows * columns; i += plain_threads) {
    const int row = i / columns, column = i % columns;
    tile[column * plain_pitch + row] =
        first + row < end ? to_float(part[(first + row) * stride + column]) : 0.0F;
  }
}

// sums[i][j] += sum over k of left[k][4 y + i] * right[k][4 x + j], for thread (x, y) of 16 x 16: the product
// of two transposed tiles.
__device__ inline void add_product(float (&sums)[4][4], const float* left, const float* right, int depth) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  for (int k = 0; k < depth; ++k) {
    const float4 l = *reinterpret_cast<const float4*>(left + k * plain_pitch + 4 * y);
    const float4 r = *reinterpret_cast<const float4*>(right + k * plain_pitch + 4 * x);
    const float ls[4] = {l.x, l.y, l.z, l.w}, rs[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] += ls[i] * rs[j];
    }
  }
}

// sums[i][c] += sum over k of weights[k][4 y + i] * tile[x + 16 c][k], columns below `columns`: a matrix of
// 64 x 64, stored transposed, times the rows of a transposed tile.
template <int parts>
__device__ void add_weighted_rows(float (&sums)[4][parts], const float* weights, const float* tile,
                                  int columns) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  for (int k = 0; k < plain_rows; ++k) {
    const float4 w = *reinterpret_cast<const float4*>(weights + k * plain_pitch + 4 * y);
    const float ws[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int c = 0; c < parts; ++c) {
      const float value = x + 16 * c < columns ? tile[(x + 16 * c) * plain_pitch + k] : 0.0F;
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i][c] += ws[i] * value;
    }
  }
}

// weights[4 x + j][4 y + i] = values[i][j]: stores a 64 x 64 matrix for add_weighted_rows.
__device__ inline void store_weights(float* weights, const float (&values)[4][4]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    *reinterpret_cast<float4*>(weights + (4 * x + j) * plain_pitch + 4 * y) =
        make_float4(values[0][j], values[1][j], values[2][j], values[3][j]);
  }
}

// Writes what add_weighted_rows summed, times `scale`: rows before `end` of a matrix part.
template <int parts, typename T>
__device__ void store_rows(const float (&sums)[4][parts], float scale, T* part, int64_t stride, int64_t first,
                           int64_t end, int columns) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first + 4 * y + i;
    if (row >= end) continue;
#pragma unroll
    for (int c = 0; c < parts; ++c) {
      if (x + 16 * c < columns) part[row * stride + x + 16 * c] = from_float<T>(sums[i][c] * scale);
    }
  }
}

// Sum and maximum over the 16 threads that share rows.
__device__ inline float sum_of_16(float x) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFFU, x, step, 16);
  return x;
}
__device__ inline float max_of_16(float x) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFU, x, step, 16));
  return x;
}

// The tile of this block: block x is a piece of work. Every warp finds it.
template <bool ascending>
__device__ PackedTile plain_tile(const int32_t* offsets, int sequences, int heads) {
  PackedTiles tiles(offsets, sequences, plain_rows, heads);
  return tiles.find<ascending>(blockIdx.x, [heads](int) { return heads; });
}

// Calls f with the number of 16-column parts that cover a head, a compile-time constant.
template <typename F>
void with_parts(int64_t head_dim, F&& f) {
  require(head_dim <= 256, "packed attention: heads are wider than 256");
  if (head_dim <= 32) return f(std::integral_constant<int, 2>{});
  if (head_dim <= 64) return f(std::integral_constant<int, 4>{});
  if (head_dim <= 128) return f(std::integral_constant<int, 8>{});
  f(std::integral_constant<int, 16>{});
}

// Two transposed tiles and the weights.
inline size_t plain_shared_bytes(int64_t head_dim) {
  return (2 * head_dim + plain_rows) * plain_pitch * sizeof(float);
}

// Launches one block for each piece of work there can be at most.
template <typename Kernel, typename Parameters>
void launch_plain(const Context& context, Kernel kernel, int64_t work, int64_t head_dim,
                  const Parameters& parameters) {
  const size_t bytes = plain_shared_bytes(head_dim);
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  launch_kernel(context, kernel, dim3(static_cast<unsigned>(work)), dim3(plain_threads), bytes, parameters);
}

}  // namespace sl::cuda
