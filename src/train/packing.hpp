// Rows of training data to packed batches.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/batch.hpp"

namespace sl {

// One sequence: a conversation with its chat turns.
struct TrainingRow {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> mask;  // 1: this token is learnt; as long as tokens
};

// Both look at the first `cutoff` tokens only; the rest is cut off.
int64_t trained_tokens(const TrainingRow& row, int64_t cutoff);
// Rows of a batch that the sequence takes: position t predicts token t + 1, so one less than its tokens; 0
// when nothing of it is learnt.
int64_t packed_rows(const TrainingRow& row, int64_t cutoff);

// The chosen rows, in their order, in as few consecutive batches as keep each to `pass_tokens` rows; a longer
// sequence has a batch of its own. Every learnt token has weight `weight`.
std::vector<PackedBatch> pack(const std::vector<TrainingRow>& rows, std::span<const int64_t> chosen,
                              int64_t cutoff, int64_t pass_tokens, float weight);

}  // namespace sl
