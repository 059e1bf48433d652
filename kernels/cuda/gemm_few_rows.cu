#include "kernels/cuda/gemm_few_rows.hpp"

#include <algorithm>

#include "kernels/cuda/gemm_few_rows.cuh"

namespace sl {
extern unsigned long long* few_rows_trace;
namespace {

using namespace cuda;

template <int groups, int tokens, int splits>
void run_tile(const Context& context, const Gemm& op, void* out, const FewRowsTuning& tuning) {
  constexpr int tile_rows = 64 * groups;
  const int64_t m = op.a.rows(), n = op.b.rows(), k = op.a.columns();
  FewRows work = {};
  work.m = m;
  work.n = n;
  work.k_blocks = static_cast<int>(ceil_div(k, few_rows_k));
  work.stages = std::min((tuning.budget * 1024 - few_rows_other_bytes(groups)) / few_rows_stage_bytes(groups, tokens), few_rows_most_stages);
  require(work.stages * few_rows_stage_bytes(groups, tokens) >= few_rows_exchange_bytes(groups, tokens, splits), "ring too small");
  work.out = out;
  work.before = op.out.raw();
  work.out_stride = op.out.row_stride();
  work.bias = op.bias.defined() ? pointer<bf16>(op.bias) : nullptr;
  work.alpha = op.alpha;
  work.beta = op.beta;
  work.out_is_f32 = op.out.dtype() == DType::f32;
  work.wide = mappable(out, op.out.row_stride() * size_of(op.out.dtype()));
  work.warm = tuning.warm;
  const int shared = work.stages * few_rows_stage_bytes(groups, tokens) + few_rows_other_bytes(groups);
  if (few_rows_trace) { work.trace = few_rows_trace; few_rows_trace += 8 * 512; }
  const auto kernel = few_rows_kernel<groups, tokens, splits>;
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  if (tuning.carve) SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
  launch_kernel(context, kernel, dim3(splits, static_cast<uint32_t>(ceil_div(n, tile_rows))), dim3(128 * groups + 32), shared,
                matrix_map(op.b, tile_rows), matrix_map(op.a, tokens), work);
}

template <int tokens>
void split(const Context& context, const Gemm& op, void* out, FewRowsTuning t, int splits, int groups) {
  if (tokens == 256 && splits == 3) splits = 2;
  if (splits == 1 && groups == 3 && tokens < 256) run_tile<tokens < 256 ? 3 : 2, tokens, 1>(context, op, out, t);
  else if (splits == 1) run_tile<2, tokens, 1>(context, op, out, t);
  else if (splits == 2) run_tile<2, tokens, 2>(context, op, out, t);
  else if (splits == 3) run_tile<2, tokens, tokens < 256 ? 3 : 2>(context, op, out, t);
  else run_tile<2, tokens, 4>(context, op, out, t);
}

}  // namespace

std::vector<FewRowsTuning> few_rows_tunings;
unsigned long long* few_rows_trace = nullptr;

void run_few_rows(const Context& context, const Gemm& op, void* out, int configuration) {
  const int64_t m = op.a.rows();
  const FewRowsTuning& t = few_rows_tunings.at(configuration);
  const bool large = op.b.rows() > 10000;
  int splits = large ? 1 : t.splits, groups = large ? t.groups : t.small_groups;
  if (splits <= 0) {
    const int most = splits < 0 ? -splits : 8;
    splits = 1;
    for (int s : {2, 3, 4}) if (s <= most && s * ceil_div(op.b.rows(), 64 * groups) <= context.cuda->multiprocessors) splits = s;
  }
  while (splits > 1 && op.a.columns() < splits * 64) --splits;
  if (m <= 8) split<8>(context, op, out, t, splits, groups);
  else if (m <= 64) split<64>(context, op, out, t, splits, groups);
  else if (m <= 128) split<128>(context, op, out, t, splits, groups);
  else split<256>(context, op, out, t, splits, groups);
}

}  // namespace sl
