// Hopper's path of PackedAttention: which calls it takes, tensor maps, launch. The kernel is in
// packed_attention_hopper.cuh.
#include "kernels/cuda/packed_attention_hopper.cuh"

#include <algorithm>

#include "kernels/cuda/packed_attention.hpp"

namespace sl::cuda {
namespace {

__device__ PackedQueue forward_queue;

template <class F>
void launch_forward(const Context& context, const PackedAttention& op, const PackedShape& shape,
                    int section_bytes = 16 << 20) {
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
  p.section_bytes = section_bytes;
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
  if (shape.head_dim == 128) {
    launch_forward<PackedForward<128, 128, 2, 2>>(context, op, shape);
  } else if (shape.head_dim == 64) {
    launch_forward<PackedForward<64, 128, 2, 2>>(context, op, shape);
  } else {
    return false;
  }
  return true;
}

}  // namespace sl::cuda
