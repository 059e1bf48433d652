// Products: by cuBLASLt, or by our own kernel for linear layers with few rows, whichever GemmAlgorithms found
// faster. Where the context wants rows that do not depend on the batch around them, linear layers take our
// own kernels only: cuBLASLt chooses another order of summation for another number of rows.
#include <algorithm>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/gemm_algorithms.hpp"
#include "kernels/cuda/gemm_few_rows.hpp"
#include "kernels/cuda/gemm_fixed_order.hpp"
#include "kernels/cuda/gemm_library.hpp"

namespace sl {
namespace {

using namespace cuda;

// out = beta * out + bias, without reading out where beta is 0. Dividing by an int is several times faster
// than by an int64_t, so a block owns columns of one row.
template <typename T, typename B>
__global__ void scale_and_bias(T* out, int64_t stride, int64_t rows, int64_t columns, float beta,
                               const B* bias) {
  wait_for_previous();
  start_next();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  const float added = bias == nullptr ? 0.0F : to_float(bias[column]);
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    T& element = out[row * stride + column];
    element = from_float<T>((beta == 0.0F ? 0.0F : beta * to_float(element)) + added);
  }
}

void scale_and_bias(const Context& context, const Gemm& op) {
  constexpr int64_t threads = 256, most_blocks = 65535;
  const int64_t m = op.out.rows(), n = op.out.columns();
  const dim3 grid(static_cast<uint32_t>(ceil_div(n, threads)),
                  static_cast<uint32_t>(std::min(m, most_blocks)));
  with_element_type(op.out.dtype(), [&](auto out_element) {
    with_element_type(op.a.dtype(), [&](auto bias_element) {
      using T = decltype(out_element);
      using B = decltype(bias_element);
      launch_kernel(context, scale_and_bias<T, B>, grid, dim3(threads), 0, pointer<T>(op.out),
                    op.out.row_stride(), m, n, op.beta, op.bias.defined() ? pointer<B>(op.bias) : nullptr);
    });
  });
}

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const Gemm& op) {
  const Dims dims = match_shapes("Gemm", context.device,
                                 {{"a", op.a, op.transpose_a ? "KM" : "MK", op.a.dtype()},
                                  {"b", op.b, op.transpose_b ? "NK" : "KN", op.a.dtype()},
                                  {"out", op.out, "MN", op.out.dtype()},
                                  {"bias", op.bias, "N", op.a.dtype(), true},
                                  {"addend", op.addend, "MN", op.out.dtype(), true}});
  require(!op.addend.defined() || op.addend.row_stride() == op.out.row_stride() || op.addend.rows() <= 1,
          "Gemm: addend and out have different row strides");
  const int64_t m = dims['M'], n = dims['N'], k = dims['K'];
  if (m == 0 || n == 0) return;
  const bool fixed_order = context.deterministic && op.transpose_b && !op.transpose_a;
  Gemm product = op;
  // Only cuBLASLt takes an addend as it is.
  if (op.addend.defined() && (fixed_order || k == 0 || op.bias.defined() || m <= most_few_rows)) {
    launch<Device::cuda>(context, Copy{op.addend, op.out});
    product.addend = {};
  }
  if (k == 0) return scale_and_bias(context, product);

  if (fixed_order) {
    if (few_rows_supported(context, product)) return run_few_rows(context, product, product.out.raw());
    return run_in_fixed_order(context, product);
  }

  // cuBLASLt adds only a bias of the output's dtype; another one goes in first (out is then f32: exact).
  if (op.bias.defined() && op.bias.dtype() != op.out.dtype()) {
    scale_and_bias(context, product);
    product.bias = {};
    product.beta = 1.0F;
  }
  const GemmChoice choice = context.cuda->algorithms->choose(context, product, m, n, k);
  if (choice.own) return run_few_rows(context, product, product.out.raw());
  SL_CUBLAS(LibraryProduct(context, product, m, n, k).run(choice.library, product.out.raw()));
}

}  // namespace sl
