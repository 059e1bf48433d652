// Linear layers with few rows: out^T = W x^T, where reading W is what takes the time. Weights are the wide
// operand of wgmma (64 rows a warpgroup), the rows of x the narrow one (8, 64 or 128, in fixed order 256,
// padded with zeros). One warp keeps a ring of about 200 KB a multiprocessor full by bulk copies. The ring is
// filled with weights before the kernel ahead has ended: only x has to wait for it. Matrices with fewer tiles
// than multiprocessors are also cut along k; the blocks of a cut tile are a cluster and exchange their sums
// through shared memory, in fixed order.
//
// Measured on one H100 80GB HBM3: the four products of a qwen2-7b layer (4608, 3584, 37888 x 3584; 3584 x
// 18944) one after the other in a graph over 6 layers of cold weights, us a layer; 466 MB are 155 us at 3.0
// TB/s. With a small kernel after each product (that lets the next start before it waits itself) at 64 rows:
// 176, cuBLASLt 190.
//   rows                                              1      64     128    256
//   cuBLASLt, best of its 8 candidates                173    181    190    211
//   this                                              161    171    189    not used
// Tried before:
//   stream-K over 132 persistent blocks, partial sums through global memory and flags: 171 and 183; the
//   exchange costs 5 us a product and grows with the rows (209 at 128, 282 at 256)
//   two blocks of 112 KB a multiprocessor, so that the next kernel fits beside this one: 184 and 195; its
//   early fetches delay the last ones of this kernel
//   one tile of 128 weight rows instead of 192 for large matrices: 164 and 174
//   fetching what follows the ring into L2: 0 to 40 us slower
//   256 rows as one tile: 286 (x fetched by two blocks for both), 396 (for four), cuBLASLt 211. With its
//   products left out the kernel is hardly faster: 6 TB/s leave L2. cuBLASLt's has clusters of 4 x 2 tiles.
//   In fixed order it is used all the same: 318, two passes of 128 rows 470.
// Output through bulk stores instead of 16 tokens at a time: the layer at 64 rows, each product as it was
// measured to be faster, 177.4 -> 172.5 in sequence.
#include "kernels/cuda/gemm_few_rows.hpp"

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/gemm_few_rows.cuh"

namespace sl {
namespace {

using namespace cuda;

// Of a block; the ring is what the rest leaves. Blocks of many rows have few, large stages.
constexpr int shared_budget(int tokens) { return (tokens > 128 ? 226 : 200) * 1024; }

// Tiles that share x, which many rows of it would otherwise have read from L2 for every tile.
constexpr int sharing_of(int tokens) { return tokens > 128 ? 2 : 1; }

template <int groups, int tokens, int splits>
void run_tiles(const Context& context, const Gemm& op, void* out) {
  constexpr int sharing = sharing_of(tokens);
  constexpr int stage_bytes = few_rows_stage_bytes(groups, tokens),
                other_bytes = few_rows_other_bytes(groups);
  constexpr int stages = std::min((shared_budget(tokens) - other_bytes) / stage_bytes, few_rows_most_stages);
  constexpr int out_tokens = tokens / few_rows_parts(tokens, splits);
  constexpr int ring_again = few_rows_exchange_bytes(groups, tokens, splits) + groups * out_tokens * 128;
  static_assert(stages * stage_bytes >= ring_again);
  constexpr int shared_bytes = stages * stage_bytes + other_bytes;
  const bool wide = mappable(out, op.out.row_stride() * size_of(op.out.dtype()));
  const bool mapped = wide && op.out.dtype() == DType::bf16 && op.beta == 0.0F && out_tokens % 16 == 0;
  const FewRows work = {.m = op.a.rows(),
                        .n = op.b.rows(),
                        .k_blocks = static_cast<int>(ceil_div(op.a.columns(), few_rows_k)),
                        .stages = stages,
                        .out = out,
                        .before = op.out.raw(),
                        .out_stride = op.out.row_stride(),
                        .out_is_f32 = op.out.dtype() == DType::f32,
                        .wide = wide,
                        .mapped = mapped,
                        .bias = op.bias.defined() ? pointer<bf16>(op.bias) : nullptr,
                        .alpha = op.alpha,
                        .beta = op.beta};
  const auto kernel = few_rows_kernel<groups, tokens, splits, sharing>;
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  // Or a multiprocessor drains before it is given another division of its memory.
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
  const dim3 grid(splits, static_cast<uint32_t>(ceil_div(work.n, 64 * groups * sharing) * sharing));
  const CUtensorMap weights = matrix_map(op.b, 64 * groups), x = matrix_map(op.a, tokens / sharing);
  const CUtensorMap out_map =
      mapped ? make_tensor_map(out, {{work.n, 64}, {work.m, out_tokens, work.out_stride * 2}}) : x;
  launch_kernel(context, kernel, grid, dim3(128 * groups + 32), shared_bytes, weights, x, out_map, work);
}

// Into how many shares k is cut. Large matrices have tiles enough; small ones get as many blocks as there are
// multiprocessors.
int splits_for(const Context& context, int64_t n, int64_t k) {
  const int64_t k_blocks = ceil_div(k, few_rows_k), tiles = ceil_div(n, 128);
  for (const int splits : {4, 3, 2}) {
    if (splits * tiles <= context.cuda->multiprocessors && splits <= k_blocks) return splits;
  }
  return 1;
}

template <int tokens>
void run_rows(const Context& context, const Gemm& op, void* out) {
  constexpr int64_t large = 10000;  // weight rows from which on higher tiles are faster
  switch (splits_for(context, op.b.rows(), op.a.columns())) {
    case 4:
      return run_tiles<2, tokens, 4>(context, op, out);
    case 3:
      return run_tiles<2, tokens, 3>(context, op, out);
    case 2:
      return run_tiles<2, tokens, 2>(context, op, out);
    default:
      if (op.b.rows() > large) return run_tiles<3, tokens, 1>(context, op, out);
      return run_tiles<2, tokens, 1>(context, op, out);
  }
}

// How k is cut depends on k only.
template <int tokens>
void run_rows_in_fixed_order(const Context& context, const Gemm& op, void* out) {
  if (ceil_div(op.a.columns(), few_rows_k) >= 16) return run_tiles<2, tokens, 4>(context, op, out);
  run_tiles<2, tokens, 1>(context, op, out);
}

}  // namespace

bool few_rows_supported(const Context& context, const Gemm& op) {
  return context.cuda->compute_capability == 90 && op.transpose_b && !op.transpose_a &&
         op.a.dtype() == DType::bf16 && op.a.columns() > 0 && mappable(op.a.raw(), op.a.row_stride() * 2) &&
         mappable(op.b.raw(), op.b.row_stride() * 2);
}

void run_few_rows(const Context& context, const Gemm& op, void* out) {
  const bool fixed_order = context.deterministic;
  const int64_t m = op.a.rows(), at_once = fixed_order ? 256 : most_few_rows;
  for (int64_t begin = 0; begin < m; begin += at_once) {
    const int64_t end = std::min(begin + at_once, m);
    Gemm part = op;
    part.a = op.a.rows(begin, end);
    part.out = op.out.rows(begin, end);
    char* part_out = static_cast<char*>(out) + begin * op.out.row_stride() * size_of(op.out.dtype());
    const auto run = [&](auto tokens) {
      if (fixed_order) return run_rows_in_fixed_order<tokens()>(context, part, part_out);
      if constexpr (tokens() <= most_few_rows) run_rows<tokens()>(context, part, part_out);
    };
    if (end - begin <= 8) {
      run(std::integral_constant<int, 8>());
    } else if (end - begin <= 64) {
      run(std::integral_constant<int, 64>());
    } else if (end - begin <= 128) {
      run(std::integral_constant<int, 128>());
    } else {
      run(std::integral_constant<int, 256>());
    }
  }
}

}  // namespace sl
