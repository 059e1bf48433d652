// A plain tiled product: a block makes 64 x 64 outputs, a thread 4 x 4 of them, from panels of 16 k in shared
// memory. For small models and checks, not for speed: no tensor cores.
#include "kernels/cuda/gemm_fixed_order.hpp"

#include "kernels/cuda/common.cuh"

namespace sl {
namespace {

using namespace cuda;

constexpr int tile = 64, panel = 16, each = 4, side = tile / each;  // side x side threads

template <typename T, typename O>
struct FixedOrder {
  const T *a, *b, *bias;
  O* out;
  int64_t m, n, k, a_stride, b_stride, out_stride;
  float alpha, beta;
};

// Rows first_row .. + tile, numbers first_k .. + panel; zeros outside.
template <typename T>
__device__ void load_panel(float (&panel_of)[panel][tile + 1], const T* matrix, int64_t stride, int64_t rows,
                           int64_t k, int64_t first_row, int64_t first_k) {
  for (int i = static_cast<int>(threadIdx.x); i < tile * panel; i += side * side) {
    const int row = i / panel, p = i % panel;
    const bool inside = first_row + row < rows && first_k + p < k;
    panel_of[p][row] = inside ? to_float(matrix[(first_row + row) * stride + first_k + p]) : 0.0F;
  }
}

template <typename T, typename O>
__global__ __launch_bounds__(side* side) void fixed_order_kernel(FixedOrder<T, O> op) {
  __shared__ float a_panel[panel][tile + 1], b_panel[panel][tile + 1];
  wait_for_previous();
  start_next();
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * tile;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * tile;
  const int thread_row = static_cast<int>(threadIdx.x) / side,
            thread_column = static_cast<int>(threadIdx.x) % side;
  float sums[each][each] = {};
  for (int64_t first_k = 0; first_k < op.k; first_k += panel) {
    load_panel(a_panel, op.a, op.a_stride, op.m, op.k, first_row, first_k);
    load_panel(b_panel, op.b, op.b_stride, op.n, op.k, first_column, first_k);
    __syncthreads();
#pragma unroll
    for (int p = 0; p < panel; ++p) {
#pragma unroll
      for (int i = 0; i < each; ++i) {
#pragma unroll
        for (int j = 0; j < each; ++j) {
          sums[i][j] =
              fmaf(a_panel[p][thread_row + side * i], b_panel[p][thread_column + side * j], sums[i][j]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < each; ++i) {
#pragma unroll
    for (int j = 0; j < each; ++j) {
      const int64_t row = first_row + thread_row + side * i, column = first_column + thread_column + side * j;
      if (row >= op.m || column >= op.n) continue;
      O& element = op.out[row * op.out_stride + column];
      float value = op.alpha * sums[i][j];
      if (op.beta != 0.0F) value += op.beta * to_float(element);
      if (op.bias != nullptr) value += to_float(op.bias[column]);
      element = from_float<O>(value);
    }
  }
}

}  // namespace

void run_in_fixed_order(const Context& context, const Gemm& op) {
  const int64_t m = op.out.rows(), n = op.out.columns();
  constexpr int64_t most_row_tiles = 65535;
  require(m <= most_row_tiles * tile, "too many rows for a product in fixed order");
  const dim3 grid(static_cast<uint32_t>(ceil_div(n, tile)), static_cast<uint32_t>(ceil_div(m, tile)));
  with_element_type(op.a.dtype(), [&](auto in_element) {
    with_element_type(op.out.dtype(), [&](auto out_element) {
      using T = decltype(in_element);
      using O = decltype(out_element);
      const FixedOrder<T, O> parameters = {.a = pointer<T>(op.a),
                                           .b = pointer<T>(op.b),
                                           .bias = op.bias.defined() ? pointer<T>(op.bias) : nullptr,
                                           .out = pointer<O>(op.out),
                                           .m = m,
                                           .n = n,
                                           .k = op.a.columns(),
                                           .a_stride = op.a.row_stride(),
                                           .b_stride = op.b.row_stride(),
                                           .out_stride = op.out.row_stride(),
                                           .alpha = op.alpha,
                                           .beta = op.beta};
      launch_kernel(context, fixed_order_kernel<T, O>, grid, dim3(side * side), 0, parameters);
    });
  });
}

}  // namespace sl
