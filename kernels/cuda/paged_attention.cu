// PagedAttention on a GPU: which kernel takes which rows. The kernels and their ideas: paged_decode.cuh,
// paged_prefill.cuh, paged_plain.cuh; the division of work: paged_plan.cuh.
#include "kernels/cuda/paged_kernels.hpp"
#include "kernels/cuda/paged_plain.cuh"

namespace sl {
namespace {

using namespace cuda;
using namespace cuda::paged;

bool aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.raw()) % 16 == 0 &&
         tensor.row_stride() * size_of(tensor.dtype()) % 16 == 0;
}

// Shapes and addresses that the tensor-core kernels take.
bool tuned(const PagedAttention& op) {
  const int64_t head_dim = op.key_pages.dim(3), page_tokens = op.key_pages.dim(2);
  return op.qkv.dtype() == DType::bf16 && (head_dim == 64 || head_dim == 128) && page_tokens % 16 == 0 &&
         op.query_heads / op.key_pages.dim(1) <= 16 && aligned(op.qkv) && aligned(op.out) &&
         aligned(op.key_pages) && aligned(op.value_pages);
}

template <typename T>
void attend_plainly(const Context& context, const PagedAttention& op) {
  require(op.key_pages.dim(3) <= plain_head_dim, "PagedAttention: heads of more than 256 numbers");
  const dim3 grid(static_cast<unsigned>(op.qkv.rows()), static_cast<unsigned>(op.query_heads));
  launch_kernel(context, plain_kernel<T>, grid, 32 * plain_warps, 0,
                PlainArguments<T>{.qkv = pointer<T>(op.qkv),
                                  .qkv_stride = op.qkv.row_stride(),
                                  .key_pages = pointer<T>(op.key_pages),
                                  .value_pages = pointer<T>(op.value_pages),
                                  .query_offsets = pointer<int>(op.query_offsets),
                                  .context_lengths = pointer<int>(op.context_lengths),
                                  .page_tables = pointer<int>(op.page_tables),
                                  .table_stride = op.page_tables.row_stride(),
                                  .out = pointer<T>(op.out),
                                  .out_stride = op.out.row_stride(),
                                  .query_heads = op.query_heads,
                                  .key_heads = op.key_pages.dim(1),
                                  .head_dim = op.key_pages.dim(3),
                                  .page_tokens = op.key_pages.dim(2),
                                  .sequences = static_cast<int>(op.context_lengths.dim(0)),
                                  .scale = op.scale});
}

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const PagedAttention& op) {
  require(op.key_pages.rank() == 4, "PagedAttention: key_pages is not P, K, G, D");
  const int64_t key_heads = op.key_pages.dim(1), head_dim = op.key_pages.dim(3);
  const int64_t sequences = op.context_lengths.dim(0);
  const DType dtype = op.qkv.dtype();
  match_shapes("PagedAttention", context.device,
               {{"qkv", op.qkv, "TW", dtype},
                {"key_pages", op.key_pages, "PKGD", dtype},
                {"value_pages", op.value_pages, "PKGD", dtype},
                {"query_offsets", op.query_offsets, "N", DType::i32},
                {"context_lengths", op.context_lengths, "S", DType::i32},
                {"page_tables", op.page_tables, "SM", DType::i32},
                {"out", op.out, "TO", dtype},
                {"plan", op.plan, "L", DType::i32, true},
                {"scratch", op.scratch, "X", DType::f32, true}},
               {{'W', (op.query_heads + 2 * key_heads) * head_dim},
                {'O', op.query_heads * head_dim},
                {'N', sequences + 1}});
  require(key_heads > 0 && op.query_heads % key_heads == 0, "PagedAttention: heads do not group");
  if (op.qkv.rows() == 0) return;
  if (!tuned(op)) {
    with_element_type(dtype, [&](auto element) { attend_plainly<decltype(element)>(context, op); });
    return;
  }
  require(op.plan.defined(), "PagedAttention: without a plan");
  // With `deterministic` the plan gives the rows of prompts to the decode kernel too.
  const bool mixed = op.longest_query > 1 && !context.deterministic;
  if (mixed) launch_prefill(context, op);
  launch_decode(context, op, mixed);
}

}  // namespace sl
