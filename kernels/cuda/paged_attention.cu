// PagedAttention on a GPU: which kernel takes which rows. The kernels and their ideas: paged_decode.cuh,
// paged_prefill_hopper.cuh, paged_prefill.cuh (before Hopper), paged_plain.cuh; the division of work:
// paged_plan.cuh.
//
// A row's bits never depend on the sequences beside it: chunks of a context have sizes that follow from its
// length alone, and are added up in order. With Context::deterministic they do not depend on how a prompt is
// cut either.
//
// Measured on one H100 80GB HBM3 (copy 3.00 TB/s in the same run), a layer of a captured step, keys and
// values not in the cache, pages of 16 tokens, in TB/s of keys and values:
//   decode, qwen2-7b (28 / 4 heads of 128), 64 x 4,096     185 us   2.90   97 % of the copy
//     256 x 1,024                                          197 us   2.73   91 %
//     96 sequences of 60 to 12,000                         142 us   2.83   94 %
//     1 x 16,384; 1 x 1,024                                18.4 us 1.82; 7.4 us: latency
//   llama3.1-8b (32 / 8 of 128), 32 x 4,096                181 us   2.96   99 %
//   smollm2-135m (9 / 3 of 64), 256 x 3,000; 64 x 2,048    216 us 2.73; 42 us 2.39
//   prefill of 8,192 tokens                                llama3.1-8b, pages of 64: 624 TFLOP/s; qwen2-7b:
//   531
//
// Tried in decode, at 64 x 4,096:
//   - the last chunk of a row to finish adds up all (a counter, in the same kernel): 1.9 to 2.2 TB/s. The
//   fences hold
//     the block up, and a late block is the last again and again; with evict-first copies 2.2 to 2.5. A
//     second kernel adds up: 2.7.
//   - contiguous copies and keys read 16 bytes a lane (bank conflicts) 2.84; swizzled copies and
//   ldmatrix 2.90,
//     and smollm2 from 1.95 to 2.39.
//   - chunks of 256 tokens 2.77, of 512 2.90; but 1 x 2,048 takes 7.5 and 9.7 us. Short contexts are cut in
//   256.
//   - 8 consumer warps 2.88, stages of 16 tokens 2.85, work given out by block number 2.88.
// In prefill: products of a warp (mma.sync), as used before Hopper, 300 TFLOP/s.
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
