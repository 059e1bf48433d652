// Low-rank adapters (Hu et al. 2021) on top of a linear layer, one run of rows of the same adapter at a time.
// Sums are in a fixed order always: the products are too thin for BLAS to gain anything.
#include <algorithm>
#include <vector>

#include "kernels/cpu/fixed_order.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {
namespace {

// out(t) += scale * (x(t) x a^T) x b^T for rows [row_begin, row_end).
void add_low_rank(const Context& context, const Lora& op, const LoraWeights& adapter, int64_t row_begin,
                  int64_t row_end) {
  const Dims dims = match_shapes("Lora", context.device,
                                 {{"x", op.x, "TI"},
                                  {"out", op.out, "TO"},
                                  {"a", adapter.a, "RI"},
                                  {"b", adapter.b, "OR"},
                                  {"scratch", op.scratch, "US"}});
  const int64_t rank = dims['R'], n_in = dims['I'], n_out = dims['O'];
  require(dims['U'] >= dims['T'] && dims['S'] >= rank, "Lora: the scratch is too small");
  const Rows x = rows_of(op.x), out = rows_of(op.out), low = rows_of(op.scratch);
  const Rows a = rows_of(adapter.a), b = rows_of(adapter.b);

  thread_local std::vector<float> transposed;
  transposed.resize(static_cast<size_t>(rank * n_out));
  const Rows b_rows{transposed.data(), n_out};
  for (int64_t o = 0; o < n_out; ++o) {
    for (int64_t r = 0; r < rank; ++r) b_rows[r][o] = b[o][r];
  }
  constexpr int64_t block = 24;
#pragma omp parallel for if ((row_end - row_begin) * n_out > parallel_floats)
  for (int64_t begin = row_begin; begin < row_end; begin += block) {
    const int64_t rows = std::min(block, row_end - begin);
    const Rows products{low[begin], low.stride};
    dot_products({x[begin], x.stride}, rows, a, rank, n_in, adapter.scale, products);
    add_weighted_rows(products, rows, b_rows, rank, n_out, {out[begin], out.stride});
  }
}

}  // namespace

template <>
void launch<Device::cpu>(const Context& context, const Lora& op) {
  const Dims dims = match_shapes(
      "Lora", context.device,
      {{"x", op.x, "TI"}, {"out", op.out, "TO"}, {"row_adapters", op.row_adapters, "T", DType::i32, true}});
  const int32_t* row_adapters = op.row_adapters.defined() ? op.row_adapters.data<int32_t>() : nullptr;
  const auto adapter_of = [row_adapters](int64_t t) { return row_adapters == nullptr ? 0 : row_adapters[t]; };
  for (int64_t begin = 0, end; begin < dims['T']; begin = end) {
    const int32_t adapter = adapter_of(begin);
    for (end = begin + 1; end < dims['T'] && adapter_of(end) == adapter;) ++end;
    if (adapter < 0) continue;
    require(adapter < static_cast<int64_t>(op.adapters.size()),
            "Lora: a row of an adapter that is not there");
    add_low_rank(context, op, op.adapters[static_cast<size_t>(adapter)], begin, end);
  }
}

}  // namespace sl
