// What crosses from scheduling to the model: host arrays that know tokens and page ids, nothing of a GPU.
// Letters as in kernels/ops.hpp: T rows, S sequences, M pages a sequence, R rows with logits.
#pragma once

#include <cstdint>
#include <vector>

namespace sl {

// Rows row_begin .. row_end of a batch use adapter `adapter` (an index into the engine's adapters).
struct AdapterSegment {
  int32_t adapter = 0;
  int64_t row_begin = 0, row_end = 0;
  bool operator==(const AdapterSegment&) const = default;
};

// Row to[i] becomes a copy of row from[i], one after the other.
struct RowCopies {
  std::vector<int32_t> from, to;
  bool operator==(const RowCopies&) const = default;
};

// One rollout step: decoding rows and prompt chunks mixed. Rows of a sequence are consecutive; sequences are
// grouped by adapter, those of the bare base model belong to no segment.
struct Batch {
  std::vector<int32_t> tokens, positions;  // T
  std::vector<int32_t> slots;          // T: page * tokens_per_page + offset, where the row's key and value go
  std::vector<int32_t> query_offsets;  // S + 1
  std::vector<int32_t> context_lengths;  // S: tokens of the sequence including its rows here
  std::vector<int32_t> page_tables;      // S * pages_per_sequence, unused entries 0
  int64_t pages_per_sequence = 0;        // M of this batch
  std::vector<int32_t> output_rows;      // R: rows whose logits are wanted, ascending
  std::vector<AdapterSegment> segments;
  RowCopies copied_pages;  // before anything is stored

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  int64_t sequences() const { return static_cast<int64_t>(context_lengths.size()); }
  int64_t outputs() const { return static_cast<int64_t>(output_rows.size()); }
};

// One training pass: whole sequences back to back, without padding.
struct PackedBatch {
  std::vector<int32_t> tokens;   // T
  std::vector<int32_t> offsets;  // S + 1
  std::vector<int32_t> targets;  // T: the token that row predicts, -1 where the loss does not look
  std::vector<float> weights;    // T: weight of the row's loss and gradient; the caller normalises

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
};

}  // namespace sl
