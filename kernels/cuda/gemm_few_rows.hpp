// Our own kernels for linear layers with few rows (decoding): see gemm_few_rows.cu.
#pragma once

#include <cstdint>
#include <vector>

#include "core/context.hpp"
#include "kernels/ops.hpp"

namespace sl {

// Rows that one launch can take; more rows take several launches, each of which reads the weights.
constexpr int64_t most_few_rows = 256;

// True for out = alpha * a x b^T + beta * out (+ bias) with a, b of bf16 whose rows start at multiples of 16
// bytes, on a GPU that has the instructions.
bool few_rows_supported(const Context& context, const Gemm& op);

// The configurations worth measuring for that many rows, best guess first.
std::vector<int> few_rows_candidates(int64_t m);

// Writes to `out` (op.out, or scratch laid out as op.out) what op asks for. Every configuration adds the
// products of an output number up in the same order, whatever m is: a row's bits depend on its own numbers
// and on the weights only. For any m: `configuration` counts for the rows that fit it.
void run_few_rows(const Context& context, const Gemm& op, void* out, int configuration);

struct FewRowsTuning { int groups = 2, small_groups = 2, splits = 4, budget = 112, trigger = 100, prefetch = 0, keep = 0, carve = 1, warm = 1; };
extern unsigned long long* few_rows_trace;
extern std::vector<FewRowsTuning> few_rows_tunings;
}  // namespace sl
