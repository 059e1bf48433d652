// Low-rank adapters (Hu et al. 2021) on top of a linear layer, one segment of rows an adapter. Sums are in a
// fixed order always: the products are too thin for BLAS to gain anything.
#include <algorithm>
#include <vector>

#include "kernels/cpu/fixed_order.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {

template <>
void launch<Device::cpu>(const Context& context, const Lora& op) {
  thread_local std::vector<float> transposed;
  for (const LoraSegment& segment : op.segments) {
    const Dims dims = match_shapes("Lora", context.device,
                                   {{"x", op.x, "TI"},
                                    {"out", op.out, "TO"},
                                    {"a", segment.a, "RI"},
                                    {"b", segment.b, "OR"},
                                    {"scratch", op.scratch, "US"}});
    const int64_t rank = dims['R'], n_in = dims['I'], n_out = dims['O'];
    require(0 <= segment.row_begin && segment.row_begin <= segment.row_end && segment.row_end <= dims['T'],
            "Lora: a segment outside the rows");
    require(dims['U'] >= dims['T'] && dims['S'] >= rank, "Lora: the scratch is too small");
    const Rows x = rows_of(op.x), out = rows_of(op.out), low = rows_of(op.scratch);
    const Rows a = rows_of(segment.a), b = rows_of(segment.b);

    transposed.resize(static_cast<size_t>(rank * n_out));
    const Rows b_rows{transposed.data(), n_out};
    for (int64_t o = 0; o < n_out; ++o) {
      for (int64_t r = 0; r < rank; ++r) b_rows[r][o] = b[o][r];
    }
    constexpr int64_t block = 24;
#pragma omp parallel for if ((segment.row_end - segment.row_begin) * n_out > parallel_floats)
    for (int64_t begin = segment.row_begin; begin < segment.row_end; begin += block) {
      const int64_t rows = std::min(block, segment.row_end - begin);
      const Rows products{low[begin], low.stride};
      dot_products({x[begin], x.stride}, rows, a, rank, n_in, segment.scale, products);
      add_weighted_rows(products, rows, b_rows, rank, n_out, {out[begin], out.stride});
    }
  }
}

}  // namespace sl
