// PackedAttention where the tuned path does not apply: f32, other head dimensions, other GPUs. One block for
// 64 query rows of a head, keys 64 at a time, online softmax (FlashAttention, Dao et al. 2022), sums in f32.
#include "kernels/cuda/packed_attention.hpp"
#include "kernels/cuda/packed_attention_plain.cuh"

namespace sl::cuda {
namespace {

template <typename T>
struct PlainForwardParameters {
  const T* qkv;
  const int32_t* offsets;
  T* out;
  float* log_sum_exp;
  int64_t qkv_stride, out_stride, log_sum_exp_stride;
  int sequences, query_heads, key_heads, head_dim;
  float scale;
};

// parts: 16-column parts that cover a head.
template <typename T, int parts>
__global__ void __launch_bounds__(plain_threads) plain_forward_kernel(PlainForwardParameters<T> p) {
  wait_for_previous();
  start_next();
  const PackedTile work = plain_tile<false>(p.offsets, p.sequences, p.query_heads);
  if (work.head < 0) return;
  extern __shared__ float4 shared[];
  float* q = reinterpret_cast<float*>(shared);             // [head_dim][pitch]
  float* keys = q + p.head_dim * plain_pitch;              // keys, then values, as q
  float* probabilities = keys + p.head_dim * plain_pitch;  // [key][pitch]
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const int64_t first_query = work.first + static_cast<int64_t>(work.tile) * plain_rows;
  const int key_head = work.head / (p.query_heads / p.key_heads);
  const T* key_part = p.qkv + (p.query_heads + key_head) * p.head_dim;
  const T* value_part = key_part + p.key_heads * p.head_dim;

  load_transposed(q, p.qkv + work.head * p.head_dim, p.qkv_stride, first_query, work.end, p.head_dim);
  float out[4][parts] = {}, largest[4], sum[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) largest[i] = -INFINITY;
  for (int block = 0; block <= work.tile; ++block) {
    const int64_t first_key = work.first + static_cast<int64_t>(block) * plain_rows;
    __syncthreads();
    load_transposed(keys, key_part, p.qkv_stride, first_key, work.end, p.head_dim);
    __syncthreads();
    float scores[4][4] = {};
    add_product(scores, q, keys, p.head_dim);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float highest = largest[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool hidden = first_key + 4 * x + j > first_query + 4 * y + i;
        scores[i][j] = hidden ? -INFINITY : scores[i][j] * p.scale;
        highest = fmaxf(highest, scores[i][j]);
      }
      highest = max_of_16(highest);  // finite: the first block has a key for every row
      const float shrink = expf(largest[i] - highest);
      largest[i] = highest;
      float total = 0.0F;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        scores[i][j] = expf(scores[i][j] - highest);
        total += scores[i][j];
      }
      sum[i] = sum[i] * shrink + sum_of_16(total);
#pragma unroll
      for (int c = 0; c < parts; ++c) out[i][c] *= shrink;
    }
    store_weights(probabilities, scores);
    __syncthreads();
    load_transposed(keys, value_part, p.qkv_stride, first_key, work.end, p.head_dim);
    __syncthreads();
    add_weighted_rows(out, probabilities, keys, p.head_dim);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = first_query + 4 * y + i;
    if (x == 0 && row < work.end)
      p.log_sum_exp[row * p.log_sum_exp_stride + work.head] = largest[i] + logf(sum[i]);
#pragma unroll
    for (int c = 0; c < parts; ++c) out[i][c] /= sum[i];
  }
  store_rows(out, 1.0F, p.out + work.head * p.head_dim, p.out_stride, first_query, work.end, p.head_dim);
}

}  // namespace

void packed_attention_plain(const Context& context, const PackedAttention& op, const PackedShape& shape) {
  with_element_type(op.qkv.dtype(), [&]<typename T>(T) {
    with_parts(shape.head_dim, [&]<int parts>(std::integral_constant<int, parts>) {
      const PlainForwardParameters<T> p = {pointer<T>(op.qkv),
                                           pointer<int32_t>(op.offsets),
                                           pointer<T>(op.out),
                                           pointer<float>(op.log_sum_exp),
                                           op.qkv.row_stride(),
                                           op.out.row_stride(),
                                           op.log_sum_exp.row_stride(),
                                           static_cast<int>(shape.sequences),
                                           static_cast<int>(shape.query_heads),
                                           static_cast<int>(shape.key_heads),
                                           static_cast<int>(shape.head_dim),
                                           op.scale};
      launch_plain(context, plain_forward_kernel<T, parts>, shape.most_tiles(plain_rows) * shape.query_heads,
                   shape.head_dim, p);
    });
  });
}

}  // namespace sl::cuda
