// Causal attention of packed sequences, forward and backward: shapes are checked here, and the path chosen.
#include "kernels/cuda/packed_attention.hpp"

#include "kernels/cuda/common.cuh"

namespace sl {
namespace {

cuda::PackedShape shape_of(const Tensor& qkv, const Tensor& offsets, int64_t query_heads, int64_t key_heads) {
  require(qkv.rank() == 2 && offsets.rank() == 1 && offsets.size() > 0,
          "packed attention: not a packed batch");
  require(key_heads > 0 && query_heads > 0 && query_heads % key_heads == 0,
          "packed attention: heads do not group");
  return {qkv.rows(), offsets.size() - 1, query_heads, key_heads,
          qkv.columns() / (query_heads + 2 * key_heads)};
}

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const PackedAttention& op) {
  const cuda::PackedShape shape = shape_of(op.qkv, op.offsets, op.query_heads, op.key_heads);
  match_shapes("PackedAttention", context.device,
               {{"qkv", op.qkv, "TW", op.qkv.dtype()},
                {"offsets", op.offsets, "N", DType::i32},
                {"out", op.out, "TO", op.qkv.dtype()},
                {"log_sum_exp", op.log_sum_exp, "TQ"}},
               {{'W', (shape.query_heads + 2 * shape.key_heads) * shape.head_dim},
                {'O', shape.query_heads * shape.head_dim},
                {'Q', shape.query_heads}});
  if (shape.rows == 0) return;
  if (!cuda::packed_attention_hopper(context, op, shape)) cuda::packed_attention_plain(context, op, shape);
}

template <>
void launch<Device::cuda>(const Context& context, const PackedAttentionBackward& op) {
  const cuda::PackedShape shape = shape_of(op.qkv, op.offsets, op.query_heads, op.key_heads);
  match_shapes("PackedAttentionBackward", context.device,
               {{"qkv", op.qkv, "TW", op.qkv.dtype()},
                {"offsets", op.offsets, "N", DType::i32},
                {"out", op.out, "TO", op.qkv.dtype()},
                {"log_sum_exp", op.log_sum_exp, "TQ"},
                {"grad_out", op.grad_out, "TO", op.qkv.dtype()},
                {"grad_qkv", op.grad_qkv, "TW", op.qkv.dtype()}},
               {{'W', (shape.query_heads + 2 * shape.key_heads) * shape.head_dim},
                {'O', shape.query_heads * shape.head_dim},
                {'Q', shape.query_heads}});
  if (shape.rows == 0) return;
  if (!cuda::packed_attention_backward_hopper(context, op, shape))
    cuda::packed_attention_backward_plain(context, op, shape);
}

}  // namespace sl
