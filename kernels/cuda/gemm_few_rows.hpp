// Our own kernels for linear layers with few rows (decoding): see gemm_few_rows.cu.
#pragma once

#include <cstdint>

#include "core/context.hpp"
#include "kernels/ops.hpp"

namespace sl {

// More rows than this take several launches, each of which reads the weights (in fixed order: more than 256).
constexpr int64_t most_few_rows = 128;

// True for out = alpha * a x b^T + beta * out (+ bias) with k > 0 and a, b of bf16 whose rows start at
// multiples of 16 bytes, on a GPU that has the instructions.
bool few_rows_supported(const Context& context, const Gemm& op);

// Writes to `out` (op.out, or scratch laid out as op.out) what op asks for, which must be supported.
//
// The weights (op.b) are fetched before the kernels ahead in the stream have ended. So a kernel that writes
// what may be the weights of a product must not call start_next(), or the host must wait between the two.
//
// With context.deterministic the products of an output number are added up in an order that depends on k
// only: a row's bits depend on its own numbers and on the weights.
void run_few_rows(const Context& context, const Gemm& op, void* out);

}  // namespace sl
