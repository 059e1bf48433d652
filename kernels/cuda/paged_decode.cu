// Launches the decode kernel: paged_decode.cuh.
#include "kernels/cuda/paged_decode.cuh"

#include <algorithm>

#include "kernels/cuda/paged_kernels.hpp"

namespace sl::cuda::paged {
namespace {

constexpr int consumer_warps = 4;

int64_t shared_limit(const Context& context) {
  int limit = 0;
  SL_CUDA(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, context.cuda->device));
  return limit;
}

// Grids follow from shapes only, not from what is in the plan: a captured launch stays right.
int64_t most_chunks_each(const PagedAttention& op) {
  return most_chunks_of(op.page_tables.dim(1) * op.key_pages.dim(2));
}

int64_t block_count(const Context& context, const PagedAttention& op) {
  const int64_t sequences = op.context_lengths.dim(0), key_heads = op.key_pages.dim(1);
  const int64_t chunks = std::max(sequences * most_chunks_each(op), op.qkv.rows());
  const int64_t room = (op.plan.dim(0) - chunks_begin(sequences)) / 8;  // for chunks in the plan
  return std::min({chunks * key_heads, room * key_heads, int64_t{context.cuda->multiprocessors}});
}

PageRows page_rows(const Context& context, const PagedAttention& op) {
  const int64_t head_dim = op.key_pages.dim(3), rows = op.key_pages.size() / head_dim;
  require(rows < int64_t{1} << 31, "PagedAttention: more than 2^31 rows of keys");
  PageRows pages = {};
  pages.keys = pointer<bf16>(op.key_pages);
  pages.values = pointer<bf16>(op.value_pages);
  if (context.cuda->compute_capability >= 90) {
    const auto map_of = [&](const Tensor& tensor) {
      return make_tensor_map(
          tensor.raw(), {{64, 64}, {rows, part_tokens, head_dim * 2}, {head_dim / 64, head_dim / 64, 128}});
    };
    pages.key_map = map_of(op.key_pages);
    pages.value_map = map_of(op.value_pages);
  }
  return pages;
}

template <int head_dim>
void launch_sums(const Context& context, const PagedAttention& op) {
  const int64_t sequences = op.context_lengths.dim(0), key_heads = op.key_pages.dim(1);
  const int64_t blocks = ceil_div(sequences * op.query_heads, sum_warps);
  launch_kernel(context, sum_chunks_kernel<head_dim>, static_cast<unsigned>(blocks), 32 * sum_warps, 0,
                SumArguments{.query_offsets = pointer<int>(op.query_offsets),
                             .context_lengths = pointer<int>(op.context_lengths),
                             .plan = pointer<int>(op.plan),
                             .scratch = pointer<float>(op.scratch),
                             .out = pointer<bf16>(op.out),
                             .out_stride = op.out.row_stride(),
                             .sequences = static_cast<int>(sequences),
                             .key_heads = static_cast<int>(key_heads),
                             .group = static_cast<int>(op.query_heads / key_heads)});
}

template <int head_dim, int head_tiles>
void launch(const Context& context, const PagedAttention& op, bool beside_previous) {
  using Layout = DecodeLayout<head_dim, head_tiles, consumer_warps>;
  using Block = DecodeBlock<head_dim, head_tiles, consumer_warps>;
  const auto kernel = decode_kernel<head_dim, head_tiles, consumer_warps>;
  // All of a multiprocessor's shared memory goes to the ring: what is in flight hides the memory's latency.
  const int64_t most = (shared_limit(context) - Layout::bytes(0)) / (Layout::bytes(1) - Layout::bytes(0));
  const int64_t stages = most / consumer_warps * consumer_warps;
  const auto bytes = static_cast<size_t>(Layout::bytes(stages));
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const int64_t key_heads = op.key_pages.dim(1);
  launch_kernel(context, kernel, static_cast<unsigned>(block_count(context, op)), Block::threads, bytes,
                DecodeArguments{.pages = page_rows(context, op),
                                .qkv = pointer<bf16>(op.qkv),
                                .qkv_stride = op.qkv.row_stride(),
                                .query_offsets = pointer<int>(op.query_offsets),
                                .page_tables = pointer<int>(op.page_tables),
                                .table_stride = op.page_tables.row_stride(),
                                .out = pointer<bf16>(op.out),
                                .out_stride = op.out.row_stride(),
                                .plan = pointer<int>(op.plan),
                                .scratch = pointer<float>(op.scratch),
                                .scratch_floats = op.scratch.defined() ? op.scratch.size() : 0,
                                .rows = op.qkv.rows(),
                                .sequences = static_cast<int>(op.context_lengths.dim(0)),
                                .key_heads = static_cast<int>(key_heads),
                                .group = static_cast<int>(op.query_heads / key_heads),
                                .parts_a_page = static_cast<int>(op.key_pages.dim(2) / part_tokens),
                                .stages = static_cast<int>(stages),
                                .scale_log2 = op.scale * log2_e,
                                .beside_previous = beside_previous});
  if (most_chunks_each(op) > 1 && !context.deterministic) launch_sums<head_dim>(context, op);
}

}  // namespace

void launch_decode(const Context& context, const PagedAttention& op, bool beside_previous) {
  const bool wide = op.query_heads / op.key_pages.dim(1) > 8;
  if (op.key_pages.dim(3) == 64) {
    (wide ? launch<64, 2> : launch<64, 1>)(context, op, beside_previous);
  } else {
    (wide ? launch<128, 2> : launch<128, 1>)(context, op, beside_previous);
  }
}

}  // namespace sl::cuda::paged
