// Memory that paged attention on a GPU needs besides its operands.
#pragma once

#include <cstdint>

#include "kernels/ops.hpp"

namespace sl {

// For batches of at most `rows` rows in `sequences` sequences of at most `positions` tokens each. The scratch
// is bounded whatever `positions` is: a sequence is never cut into more than 32 chunks.
AttentionWorkspace cuda_attention_workspace(int64_t rows, int64_t sequences, int64_t positions,
                                            int64_t query_heads, int64_t key_heads, int64_t head_dim);

}  // namespace sl
