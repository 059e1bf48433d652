// The kernels of PagedAttention that need a plan: bf16, heads of 64 or 128 numbers, pages of a multiple of 16
// tokens, at most 16 query heads to a key-value head, rows and pages aligned to 16 bytes.
#pragma once

#include "kernels/ops.hpp"

namespace sl::cuda::paged {

// Rows of the sequences that have several. Waits for earlier kernels before it lets the next one start.
void launch_prefill(const Context& context, const PagedAttention& op);

// Rows of the sequences that have one, and zeros in rows of none. beside_previous: the launch before this one
// was launch_prefill of the same operation, and the two may run at the same time.
void launch_decode(const Context& context, const PagedAttention& op, bool beside_previous);

}  // namespace sl::cuda::paged
