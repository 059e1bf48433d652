// Gradients of low-rank adapters as products: what they are where nothing faster is at hand.
#pragma once

#include <array>

#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {

struct LowRankProducts {
  Gemm grad_b, grad_low;  // to be run in this order: grad_low may lie where low does
};

// Checks the shapes.
inline LowRankProducts products_of(const Context& context, const LowRankBackward& op) {
  const DType storage = op.grad_out.dtype();
  match_shapes("LowRankBackward", context.device,
               {{"grad_out", op.grad_out, "TO", storage},
                {"low", op.low, "TR", storage},
                {"b", op.b, "OR", storage},
                {"grad_b", op.grad_b, "OR", DType::f32},
                {"grad_low", op.grad_low, "TR", storage}});
  return {.grad_b = {.a = op.grad_out,
                     .b = op.low,
                     .out = op.grad_b,
                     .transpose_a = true,
                     .alpha = op.scale,
                     .beta = 1.0F},
          .grad_low = {.a = op.grad_out, .b = op.b, .out = op.grad_low, .alpha = op.scale}};
}

// The low-rank numbers that SwiGlu gives, by an operation of its own after it.
template <Device device>
void launch_down_low(const Context& context, const SwiGlu& op) {
  if (op.down_a.defined())
    launch<device>(context, Gemm{.a = op.out, .b = op.down_a, .out = op.down_low, .transpose_b = true});
}

// The gradients that SwiGluBackward gives, by operations of their own after it.
template <Device device>
void launch_low_rank_gradients(const Context& context, const SwiGluBackward& op) {
  require(op.gate.defined() == op.up.defined(), "SwiGluBackward: gradients of gate's or up's adapter alone");
  if (op.gate.defined()) launch<device>(context, LowRankBackwards{std::array{op.gate, op.up}});
  if (!op.down_grad_a.defined()) return;
  require(op.product.defined(), "SwiGluBackward: the gradient of A without room for the product");
  launch<device>(
      context,
      Gemm{.a = op.down_grad_low, .b = op.product, .out = op.down_grad_a, .transpose_a = true, .beta = 1.0F});
}

}  // namespace sl
