// Hopper's path of PackedAttention: which calls it takes, tensor maps, launch. The kernel is in
// packed_attention_hopper.cuh.
//
// Measured on one H100 80GB HBM3, 28 query and 4 key-value heads of 128, causal, 4 T^2 D heads / 2 operations
// (TFLOP/s; the card's state moves all of them by 5 %; cuDNN 9.19 and FlashAttention-2 through PyTorch 2.11):
//                             1 x 4,096   1 x 8,192   1 x 16,384   4 x 4,096   32 x 512   7 of 100 .. 6,000
//   N = 128                         563         623          609         601        335                 558
//   N = 160                         563         637          632         588        280                 562
//   cuDNN / FlashAttention-2  478 / 255                648 / 307
// Heads of 64: 390. 512 sequences of 32 rows: 0.33 ms. f32 (the plain path): 22.
// Tried, N = 128 at 16,384 rows: multiplying O by the change of the maximum in every step 557; only when some
// row's maximum changed 601; only when it grew by 2^8 609. K and V in 3 stages: as in 2. Three consumer
// warpgroups of 64 rows, 80 keys: -10 %. Sections of heads of 8 to 64 MB: no difference.
#include "kernels/cuda/packed_attention_hopper.cuh"

#include <algorithm>

#include "kernels/cuda/packed_attention.hpp"

namespace sl::cuda {
namespace {

__device__ PackedQueue forward_queue;

template <class F>
void launch_forward(const Context& context, const PackedAttention& op, const PackedShape& shape) {
  // The row of qkv as chunks of 64 columns: one copy brings all chunks of a head.
  const auto map_of = [&](int64_t box_rows) {
    const int64_t row_bytes = op.qkv.row_stride() * 2;
    return make_tensor_map(
        op.qkv.raw(), {{64, 64}, {shape.rows, box_rows, row_bytes}, {op.qkv.columns() / 64, F::chunks, 128}});
  };
  PackedForwardParameters p = {};
  p.offsets = pointer<int32_t>(op.offsets);
  p.out = pointer<bf16>(op.out);
  p.log_sum_exp = pointer<float>(op.log_sum_exp);
  p.out_stride = op.out.row_stride();
  p.log_sum_exp_stride = op.log_sum_exp.row_stride();
  p.sequences = static_cast<int>(shape.sequences);
  p.query_heads = static_cast<int>(shape.query_heads);
  p.key_heads = static_cast<int>(shape.key_heads);
  p.section_bytes = 16 << 20;
  p.scale = op.scale;
  void* queue = nullptr;
  SL_CUDA(cudaGetSymbolAddress(&queue, forward_queue));
  p.queue = static_cast<PackedQueue*>(queue);

  const auto kernel = packed_forward_kernel<F>;
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(F::shared_bytes)));
  const int64_t work = shape.most_tiles(F::rows) * shape.query_heads;
  const int64_t blocks = std::min<int64_t>(work, context.cuda->multiprocessors);
  launch_kernel(context, kernel, dim3(static_cast<unsigned>(blocks)), dim3(F::threads), F::shared_bytes,
                map_of(F::rows), map_of(F::N), p);
}

}  // namespace

bool packed_attention_hopper(const Context& context, const PackedAttention& op, const PackedShape& shape) {
  if (context.cuda->compute_capability != 90 || op.qkv.dtype() != DType::bf16) return false;
  if (!mappable(op.qkv.raw(), op.qkv.row_stride() * 2) || !mappable(op.out.raw(), op.out.row_stride() * 2))
    return false;
  // Steps of 160 keys have fewer waits for each key, but lose more on the diagonal: +4 % for one sequence of
  // 16,384 rows, +2 % for one of 8,192, -2 % for four of 4,096, -16 % for 32 of 512.
  const bool long_sequences = !context.deterministic && shape.rows >= 8192 * shape.sequences;
  if (shape.head_dim == 128 && long_sequences) {
    launch_forward<PackedForward<128, 160, 2, 1>>(context, op, shape);
  } else if (shape.head_dim == 128) {
    launch_forward<PackedForward<128, 128, 2, 2>>(context, op, shape);
  } else if (shape.head_dim == 64) {
    launch_forward<PackedForward<64, 128, 2, 2>>(context, op, shape);
  } else {
    return false;
  }
  return true;
}

}  // namespace sl::cuda
