// Linear layers whose results do not depend on the batch, where gemm_few_rows.hpp does not reach.
#pragma once

#include "core/context.hpp"
#include "kernels/ops.hpp"

namespace sl {

// out = alpha * a x b^T + beta * out (+ bias), for f32 and bf16, any sizes, strides and GPUs. Every output
// number is one chain of fused multiply-adds over k from the first to the last.
void run_in_fixed_order(const Context& context, const Gemm& op);

}  // namespace sl
