// How PackedAttention and its gradient are split over files: packed_attention.cu checks the shapes and
// chooses, the others hold the kernels of one path each.
#pragma once

#include "core/context.hpp"
#include "kernels/ops.hpp"

namespace sl::cuda {

// The sizes of one call, read off the tensors.
struct PackedShape {
  int64_t rows, sequences;
  int64_t query_heads, key_heads, head_dim;
  int64_t group() const { return query_heads / key_heads; }
  // At most so many tiles of `tile` rows, for one head: every sequence may end with a partial one.
  int64_t most_tiles(int64_t tile) const { return (rows + tile - 1) / tile + sequences; }
};

// Hopper's path: bf16, heads of 64 or 128, rows that begin at 16 bytes. False when it cannot take the call.
bool packed_attention_hopper(const Context& context, const PackedAttention& op, const PackedShape& shape);
bool packed_attention_backward_hopper(const Context& context, const PackedAttentionBackward& op,
                                      const PackedShape& shape);

// Everything else.
void packed_attention_plain(const Context& context, const PackedAttention& op, const PackedShape& shape);
void packed_attention_backward_plain(const Context& context, const PackedAttentionBackward& op,
                                     const PackedShape& shape);

}  // namespace sl::cuda
