// Launches the prefill kernel: on Hopper the one of paged_prefill_hopper.cuh, before that of
// paged_prefill.cuh.
#include <algorithm>

#include "kernels/cuda/paged_kernels.hpp"
#include "kernels/cuda/paged_prefill.cuh"
#include "kernels/cuda/paged_prefill_hopper.cuh"

namespace sl::cuda::paged {
namespace {

// Pieces of work, at most.
int64_t most_work(const PagedAttention& op) {
  const int64_t key_heads = op.key_pages.dim(1);
  return key_heads * most_tiles(op.qkv.rows(), op.context_lengths.dim(0), op.query_heads / key_heads);
}

template <int head_dim>
void launch_hopper(const Context& context, const PagedAttention& op) {
  using F = PrefillHopper<head_dim>;
  const int64_t key_heads = op.key_pages.dim(1), page_tokens = op.key_pages.dim(2);
  const int64_t group = op.query_heads / key_heads;
  int64_t part_tokens = F::N;
  while (page_tokens % part_tokens != 0) part_tokens /= 2;
  const int64_t page_rows = op.key_pages.dim(0) * key_heads * page_tokens;
  require(page_rows < int64_t{1} << 31, "PagedAttention: more than 2^31 rows of keys");
  const auto map_of = [&](const Tensor& pages) {
    return matrix_map(pages.reshaped({page_rows, head_dim}), part_tokens);
  };
  const CUtensorMap q_map = make_tensor_map(
      op.qkv.raw(), {{head_dim, 64},
                     {op.query_heads, group, head_dim * 2},
                     {op.qkv.rows(), tile_rows(static_cast<int>(group)), op.qkv.row_stride() * 2}});
  const auto kernel = prefill_hopper_kernel<F>;
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(F::shared_bytes)));
  const int64_t blocks = std::min<int64_t>(most_work(op), context.cuda->multiprocessors);
  launch_kernel(context, kernel, static_cast<unsigned>(blocks), F::threads, F::shared_bytes, q_map,
                map_of(op.key_pages), map_of(op.value_pages),
                PrefillHopperArguments{.query_offsets = pointer<int>(op.query_offsets),
                                       .context_lengths = pointer<int>(op.context_lengths),
                                       .page_tables = pointer<int>(op.page_tables),
                                       .table_stride = op.page_tables.row_stride(),
                                       .out = pointer<bf16>(op.out),
                                       .out_stride = op.out.row_stride(),
                                       .plan = pointer<int>(op.plan),
                                       .key_heads = static_cast<int>(key_heads),
                                       .group = static_cast<int>(group),
                                       .page_tokens = static_cast<int>(page_tokens),
                                       .part_tokens = static_cast<int>(part_tokens),
                                       .scale = op.scale});
}

template <int head_dim>
void launch_plainer(const Context& context, const PagedAttention& op) {
  const auto kernel = prefill_kernel<head_dim>;
  const int bytes = PrefillBlock<head_dim>::shared_bytes;
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const int64_t key_heads = op.key_pages.dim(1), stages_a_page = op.key_pages.dim(2) / 16;
  launch_kernel(context, kernel, static_cast<unsigned>(most_work(op)), 32 * prefill_warps, bytes,
                PrefillArguments{.qkv = pointer<bf16>(op.qkv),
                                 .qkv_stride = op.qkv.row_stride(),
                                 .key_pages = pointer<bf16>(op.key_pages),
                                 .value_pages = pointer<bf16>(op.value_pages),
                                 .query_offsets = pointer<int>(op.query_offsets),
                                 .context_lengths = pointer<int>(op.context_lengths),
                                 .page_tables = pointer<int>(op.page_tables),
                                 .table_stride = op.page_tables.row_stride(),
                                 .out = pointer<bf16>(op.out),
                                 .out_stride = op.out.row_stride(),
                                 .plan = pointer<int>(op.plan),
                                 .key_heads = static_cast<int>(key_heads),
                                 .group = static_cast<int>(op.query_heads / key_heads),
                                 .stages_a_page = static_cast<int>(stages_a_page),
                                 .inverse_stages = ((uint64_t{1} << 32) + stages_a_page - 1) / stages_a_page,
                                 .scale_log2 = op.scale * log2_e});
}

}  // namespace

void launch_prefill(const Context& context, const PagedAttention& op) {
  const bool hopper = context.cuda->compute_capability == 90;  // sm_90a code runs on nothing else
  if (op.key_pages.dim(3) == 64) {
    (hopper ? launch_hopper<64> : launch_plainer<64>)(context, op);
  } else {
    (hopper ? launch_hopper<128> : launch_plainer<128>)(context, op);
  }
}

}  // namespace sl::cuda::paged
