// The three products of a linear layer y = x W^T (+ bias), W stored (n_out, n_in).
#pragma once

#include "kernels/ops.hpp"

namespace sl {

// out = scale * x W^T + beta * out (+ bias)
inline void linear(const Context& context, const Tensor& x, const Tensor& weight, const Tensor& out,
                   const Tensor& bias = {}, float scale = 1.0F, float beta = 0.0F) {
  run(context,
      Gemm{.a = x, .b = weight, .out = out, .transpose_b = true, .alpha = scale, .beta = beta, .bias = bias});
}

// out = addend + x W^T
inline void linear_onto(const Context& context, const Tensor& addend, const Tensor& x, const Tensor& weight,
                        const Tensor& out) {
  run(context, Gemm{.a = x, .b = weight, .out = out, .transpose_b = true, .beta = 1.0F, .addend = addend});
}

// grad_x = scale * grad_out W + beta * grad_x
inline void linear_input_gradient(const Context& context, const Tensor& grad_out, const Tensor& weight,
                                  const Tensor& grad_x, float scale = 1.0F, float beta = 0.0F) {
  run(context,
      Gemm{.a = grad_out, .b = weight, .out = grad_x, .alpha = scale, .beta = beta, .bias = Tensor()});
}

// grad_weight += scale * grad_out^T x
inline void linear_weight_gradient(const Context& context, const Tensor& grad_out, const Tensor& x,
                                   const Tensor& grad_weight, float scale = 1.0F) {
  run(context, Gemm{.a = grad_out,
                    .b = x,
                    .out = grad_weight,
                    .transpose_a = true,
                    .alpha = scale,
                    .beta = 1.0F,
                    .bias = Tensor()});
}

}  // namespace sl
