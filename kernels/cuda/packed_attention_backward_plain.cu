// PackedAttentionBackward where the tuned path does not apply. The same three kernels as there
// (packed_backward.cuh tells the formulas and where delta is kept), on tiles of 64 x 64 of floats: sums in
// f32, in a fixed order.
#include "kernels/cuda/packed_attention.hpp"
#include "kernels/cuda/packed_attention_plain.cuh"

namespace sl::cuda {
namespace {

template <typename T>
struct PlainBackwardParameters {
  const T *qkv, *out, *grad_out;
  const int32_t* offsets;
  const float* log_sum_exp;
  T* grad_qkv;
  int64_t qkv_stride, out_stride, grad_out_stride, log_sum_exp_stride, grad_qkv_stride;
  int64_t rows;
  int sequences, query_heads, key_heads, head_dim;
  float scale;
};

// A float in the place of two bf16, which may begin at any of them.
template <typename T>
__device__ void keep_float(T* at, float x) {
  if constexpr (std::is_same_v<T, float>) {
    *at = x;
  } else {
    const uint32_t bits = __float_as_uint(x);
    at[0] = __ushort_as_bfloat16(static_cast<uint16_t>(bits));
    at[1] = __ushort_as_bfloat16(static_cast<uint16_t>(bits >> 16));
  }
}
template <typename T>
__device__ float kept_float(const T* at) {
  if constexpr (std::is_same_v<T, float>) {
    return *at;
  } else {
    return __uint_as_float(__bfloat16_as_ushort(at[0]) | static_cast<uint32_t>(__bfloat16_as_ushort(at[1]))
                                                             << 16);
  }
}

// delta of a row's head, by one warp.
template <typename T>
__global__ void __launch_bounds__(plain_threads) plain_delta_kernel(PlainBackwardParameters<T> p) {
  wait_for_previous();
  start_next();
  const int64_t item = (blockIdx.x * int64_t{plain_threads} + threadIdx.x) / 32;
  const int64_t row = item / p.query_heads, column = item % p.query_heads * p.head_dim;
  if (row >= p.rows) return;
  const int lane = threadIdx.x % 32;
  float sum = 0.0F;
  for (int i = lane; i < p.head_dim; i += 32) {
    sum += to_float(p.out[row * p.out_stride + column + i]) *
           to_float(p.grad_out[row * p.grad_out_stride + column + i]);
  }
  sum = warp_sum(sum);
  if (lane == 0) keep_float(p.grad_qkv + row * p.grad_qkv_stride + column, sum);
}

// The rows 4 y + i or 4 x + i of a tile of queries: what softmax left of them.
template <typename T>
struct PlainStatistics {
  float log_sum_exp[4], delta[4];  // infinite, 0 behind the end: probabilities are 0 there
  __device__ PlainStatistics(const PlainBackwardParameters<T>& p, int64_t first, int64_t end, int head) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool inside = first + i < end;
      const int64_t row = inside ? first + i : 0;
      log_sum_exp[i] = inside ? p.log_sum_exp[row * p.log_sum_exp_stride + head] : INFINITY;
      delta[i] = inside ? kept_float(p.grad_qkv + row * p.grad_qkv_stride + head * p.head_dim) : 0.0F;
    }
  }
};

// Keys and values: one block for 64 keys of a key-value head.
template <typename T, int parts>
__global__ void __launch_bounds__(plain_threads) plain_keys_kernel(PlainBackwardParameters<T> p) {
  wait_for_previous();
  start_next();
  const PackedTile work = plain_tile<true>(p.offsets, p.sequences, p.key_heads);
  if (work.head < 0) return;
  extern __shared__ float4 shared[];
  float* keys = reinterpret_cast<float*>(shared);    // keys, then values
  float* rows = keys + p.head_dim * plain_pitch;     // queries, then grad_out, then queries
  float* weights = rows + p.head_dim * plain_pitch;  // P, then dS: [query][key]
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int64_t first_key = work.first + static_cast<int64_t>(work.tile) * plain_rows;
  const int group = p.query_heads / p.key_heads;
  const int64_t key_column = (p.query_heads + work.head) * static_cast<int64_t>(p.head_dim);
  const int64_t value_column = key_column + p.key_heads * static_cast<int64_t>(p.head_dim);

  float grad_keys[4][parts] = {}, grad_values[4][parts] = {};
  for (int head = work.head * group; head < (work.head + 1) * group; ++head) {
    const int64_t column = head * static_cast<int64_t>(p.head_dim);
    for (int64_t first = first_key; first < work.end; first += plain_rows) {
      __syncthreads();
      load_transposed(keys, p.qkv + key_column, p.qkv_stride, first_key, work.end, p.head_dim);
      load_transposed(rows, p.qkv + column, p.qkv_stride, first, work.end, p.head_dim);
      __syncthreads();
      float s[4][4] = {}, dp[4][4] = {};
      add_product(s, keys, rows, p.head_dim);
      __syncthreads();
      load_transposed(keys, p.qkv + value_column, p.qkv_stride, first_key, work.end, p.head_dim);
      load_transposed(rows, p.grad_out + column, p.grad_out_stride, first, work.end, p.head_dim);
      __syncthreads();
      add_product(dp, keys, rows, p.head_dim);
      const PlainStatistics<T> statistics(p, first + 4 * x, work.end, head);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool hidden = first_key + 4 * y + i > first + 4 * x + j;
          s[i][j] = hidden ? 0.0F : expf(s[i][j] * p.scale - statistics.log_sum_exp[j]);
          dp[i][j] = s[i][j] * (dp[i][j] - statistics.delta[j]);
        }
      }
      store_weights(weights, s);
      __syncthreads();
      add_weighted_rows(grad_values, weights, rows, p.head_dim);
      __syncthreads();
      store_weights(weights, dp);
      load_transposed(rows, p.qkv + column, p.qkv_stride, first, work.end, p.head_dim);
      __syncthreads();
      add_weighted_rows(grad_keys, weights, rows, p.head_dim);
    }
  }
  store_rows(grad_keys, p.scale, p.grad_qkv + key_column, p.grad_qkv_stride, first_key, work.end, p.head_dim);
  store_rows(grad_values, 1.0F, p.grad_qkv + value_column, p.grad_qkv_stride, first_key, work.end,
             p.head_dim);
}

// Queries: one block for 64 rows of a head.
template <typename T, int parts>
__global__ void __launch_bounds__(plain_threads) plain_queries_kernel(PlainBackwardParameters<T> p) {
  wait_for_previous();
  start_next();
  const PackedTile work = plain_tile<false>(p.offsets, p.sequences, p.query_heads);
  if (work.head < 0) return;
  extern __shared__ float4 shared[];
  float* rows = reinterpret_cast<float*>(shared);    // queries, then grad_out
  float* keys = rows + p.head_dim * plain_pitch;     // keys, then values, then keys
  float* weights = keys + p.head_dim * plain_pitch;  // dS: [key][query]
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int64_t first = work.first + static_cast<int64_t>(work.tile) * plain_rows;
  const int64_t column = work.head * static_cast<int64_t>(p.head_dim);
  const int key_head = work.head / (p.query_heads / p.key_heads);
  const T* key_part = p.qkv + (p.query_heads + key_head) * static_cast<int64_t>(p.head_dim);
  const T* value_part = key_part + p.key_heads * static_cast<int64_t>(p.head_dim);
  const PlainStatistics<T> statistics(p, first + 4 * y, work.end, work.head);

  float grad[4][parts] = {};
  for (int block = 0; block <= work.tile; ++block) {
    const int64_t first_key = work.first + static_cast<int64_t>(block) * plain_rows;
    __syncthreads();
    load_transposed(rows, p.qkv + column, p.qkv_stride, first, work.end, p.head_dim);
    load_transposed(keys, key_part, p.qkv_stride, first_key, work.end, p.head_dim);
    __syncthreads();
    float s[4][4] = {}, dp[4][4] = {};
    add_product(s, rows, keys, p.head_dim);
    __syncthreads();
    load_transposed(rows, p.grad_out + column, p.grad_out_stride, first, work.end, p.head_dim);
    load_transposed(keys, value_part, p.qkv_stride, first_key, work.end, p.head_dim);
    __syncthreads();
    add_product(dp, rows, keys, p.head_dim);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool hidden = first_key + 4 * x + j > first + 4 * y + i;
        const float probability = hidden ? 0.0F : expf(s[i][j] * p.scale - statistics.log_sum_exp[i]);
        dp[i][j] = probability * (dp[i][j] - statistics.delta[i]);
      }
    }
    __syncthreads();
    store_weights(weights, dp);
    load_transposed(keys, key_part, p.qkv_stride, first_key, work.end, p.head_dim);
    __syncthreads();
    add_weighted_rows(grad, weights, keys, p.head_dim);
  }
  // Every thread has read its statistics, which lie where the gradient goes.
  store_rows(grad, p.scale, p.grad_qkv + column, p.grad_qkv_stride, first, work.end, p.head_dim);
}

}  // namespace

void packed_attention_backward_plain(const Context& context, const PackedAttentionBackward& op,
                                     const PackedShape& shape) {
  with_element_type(op.qkv.dtype(), [&]<typename T>(T) {
    with_parts(shape.head_dim, [&]<int parts>(std::integral_constant<int, parts>) {
      const PlainBackwardParameters<T> p = {pointer<T>(op.qkv),
                                            pointer<T>(op.out),
                                            pointer<T>(op.grad_out),
                                            pointer<int32_t>(op.offsets),
                                            pointer<float>(op.log_sum_exp),
                                            pointer<T>(op.grad_qkv),
                                            op.qkv.row_stride(),
                                            op.out.row_stride(),
                                            op.grad_out.row_stride(),
                                            op.log_sum_exp.row_stride(),
                                            op.grad_qkv.row_stride(),
                                            shape.rows,
                                            static_cast<int>(shape.sequences),
                                            static_cast<int>(shape.query_heads),
                                            static_cast<int>(shape.key_heads),
                                            static_cast<int>(shape.head_dim),
                                            op.scale};
      const int64_t warps = shape.rows * shape.query_heads, tiles = shape.most_tiles(plain_rows);
      launch_kernel(context, plain_delta_kernel<T>,
                    dim3(static_cast<unsigned>(ceil_div(warps * 32, plain_threads))), dim3(plain_threads), 0,
                    p);
      launch_plain(context, plain_keys_kernel<T, parts>, tiles * shape.key_heads, shape.head_dim, p);
      launch_plain(context, plain_queries_kernel<T, parts>, tiles * shape.query_heads, shape.head_dim, p);
    });
  });
}

}  // namespace sl::cuda
