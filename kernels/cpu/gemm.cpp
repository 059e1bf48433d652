// Products: OpenBLAS, or a fixed order of summation where the context asks for deterministic linear layers.
#include <algorithm>

#include "kernels/cpu/blas.hpp"
#include "kernels/cpu/fixed_order.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {
namespace {

// out = beta * out + bias, without reading out where beta is 0.
void scale_and_bias(Rows out, int64_t m, int64_t n, float beta, const float* bias) {
#pragma omp parallel for if (m * n > parallel_floats)
  for (int64_t i = 0; i < m; ++i) {
    float* row = out[i];
    for (int64_t j = 0; j < n; ++j) {
      const float kept = beta == 0.0F ? 0.0F : beta * row[j];
      row[j] = kept + (bias == nullptr ? 0.0F : bias[j]);
    }
  }
}

// Panels of a that stay in a core's cache are multiplied with blocks of rows of b, each read once a panel.
void linear_in_fixed_order(ConstRows a, ConstRows b, Rows out, int64_t m, int64_t n, int64_t k, float alpha,
                           bool accumulate) {
  constexpr int64_t columns = 48;
  constexpr int64_t most_rows = 192;
  constexpr int64_t panel_floats = 64 * 1024;
  const int64_t panel = std::clamp<int64_t>(panel_floats / std::max<int64_t>(k, 1), 24, most_rows);
#pragma omp parallel for collapse(2) if (m * n * k > 1 << 16)
  for (int64_t i = 0; i < m; i += panel) {
    for (int64_t j = 0; j < n; j += columns) {
      const int64_t rows = std::min(panel, m - i);
      const int64_t width = std::min(columns, n - j);
      const ConstRows ai{a[i], a.stride};
      const ConstRows bj{b[j], b.stride};
      if (!accumulate) {
        dot_products(ai, rows, bj, width, k, alpha, {out[i] + j, out.stride});
        continue;
      }
      thread_local float products[most_rows * columns];
      dot_products(ai, rows, bj, width, k, alpha, {products, columns});
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t c = 0; c < width; ++c) out[i + row][j + c] += products[row * columns + c];
      }
    }
  }
}

}  // namespace

template <>
void launch<Device::cpu>(const Context& context, const Gemm& op) {
  const Dims dims = match_shapes("Gemm", context.device,
                                 {{"a", op.a, op.transpose_a ? "KM" : "MK"},
                                  {"b", op.b, op.transpose_b ? "NK" : "KN"},
                                  {"out", op.out, "MN"},
                                  {"bias", op.bias, "N", DType::f32, true},
                                  {"addend", op.addend, "MN", DType::f32, true}});
  const int64_t m = dims['M'], n = dims['N'], k = dims['K'];
  if (m == 0 || n == 0) return;
  const Rows out = rows_of(op.out);
  const float* bias = op.bias.defined() ? op.bias.data<float>() : nullptr;
  if (op.addend.defined()) launch<Device::cpu>(context, Copy{op.addend, op.out});
  const bool linear = op.transpose_b && !op.transpose_a;
  // With few rows sgemm spends its time packing b.
  const bool fixed_order = linear && (context.deterministic || m <= 16);

  // The bias goes in first, and the product is added to it: one pass over `out` less.
  const bool prepared = bias != nullptr || k == 0 || (fixed_order && op.beta != 0.0F);
  if (prepared) scale_and_bias(out, m, n, op.beta, bias);
  if (k == 0) return;
  const float beta = prepared ? 1.0F : op.beta;

  if (fixed_order) {
    linear_in_fixed_order(rows_of(op.a), rows_of(op.b), out, m, n, k, op.alpha, prepared);
  } else {
    sgemm(op.transpose_a, op.transpose_b, m, n, k, op.alpha, rows_of(op.a), rows_of(op.b), beta, out);
  }
}

}  // namespace sl
