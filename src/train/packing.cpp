#include "train/packing.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace sl {
namespace {

int64_t used_tokens(const TrainingRow& row, int64_t cutoff) {
  require(row.tokens.size() == row.mask.size(), "a training row has a mask of another length");
  return std::min(static_cast<int64_t>(row.tokens.size()), cutoff);
}

void append(PackedBatch& batch, const TrainingRow& row, int64_t rows, float weight) {
  for (int64_t t = 0; t < rows; ++t) {
    const auto next = static_cast<size_t>(t + 1);
    const bool learnt = row.mask[next] != 0;
    batch.tokens.push_back(row.tokens[next - 1]);
    batch.targets.push_back(learnt ? row.tokens[next] : -1);
    batch.weights.push_back(learnt ? weight : 0.0F);
  }
  batch.offsets.push_back(static_cast<int32_t>(batch.rows()));
}

}  // namespace

int64_t trained_tokens(const TrainingRow& row, int64_t cutoff) {
  const int64_t used = used_tokens(row, cutoff);
  if (used < 2) return 0;
  return std::count_if(row.mask.begin() + 1, row.mask.begin() + used, [](uint8_t bit) { return bit != 0; });
}

int64_t packed_rows(const TrainingRow& row, int64_t cutoff) {
  return trained_tokens(row, cutoff) == 0 ? 0 : used_tokens(row, cutoff) - 1;
}

std::vector<PackedBatch> pack(const std::vector<TrainingRow>& rows, std::span<const int64_t> chosen,
                              int64_t cutoff, int64_t pass_tokens, float weight) {
  std::vector<PackedBatch> batches;
  for (const int64_t index : chosen) {
    const TrainingRow& row = rows.at(static_cast<size_t>(index));
    const int64_t needed = packed_rows(row, cutoff);
    if (needed == 0) continue;
    if (batches.empty() || batches.back().rows() + needed > pass_tokens) {
      batches.emplace_back();
      batches.back().offsets.push_back(0);
    }
    append(batches.back(), row, needed, weight);
  }
  return batches;
}

}  // namespace sl
