// The model as the engine sees it: steps of a batch, from tokens to sampled tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "model/batch.hpp"

namespace sl {

// How the output rows of a Batch are sampled, and what the bitmap of seen tokens must hold by then. Every
// sequence owns a row of that bitmap, its slot, while it runs.
struct SamplingRows {
  RowCopies copied_slots;                        // these rows of the bitmap are copied first,
  std::vector<int32_t> reset_slots;              // then these cleared,
  std::vector<int32_t> seen_tokens, seen_slots;  // then these bits set

  // One entry an output row:
  std::vector<int32_t> slots;  // -1: no repetition penalty
  std::vector<float> temperature, top_p, penalty;
  std::vector<int32_t> top_k;
  std::vector<uint32_t> stream_low, stream_high;
  std::vector<uint32_t> position;  // of the token to draw, in the whole sequence
  std::vector<int32_t> ban;        // which of ban_lists the row must not draw; -1: none
  std::vector<std::vector<int32_t>> ban_lists;
  // Rows that choose between groups of tokens instead of sampling: index into choice_lists; -1: sample.
  std::vector<int32_t> choice;
  std::vector<std::vector<std::vector<int32_t>>> choice_lists;
  std::vector<int32_t> best;  // above 0: so many best tokens are wanted (BestTokens) and none is drawn
};

struct BestToken {
  int32_t token = 0;
  float score = 0.0F;  // its log-probability, after penalty and ban
};

// What a step gave.
struct StepResult {
  std::vector<int32_t> tokens;  // one an output row; without meaning where best tokens were wanted
  std::vector<BestToken> best;  // row after row as many as it wanted, best first
};

// How much a step and a sequence may hold. The model's memory is sized by the same numbers.
struct EngineOptions {
  int64_t max_batch_rows = 256;  // rows (tokens) of a step
  int64_t max_sequences = 64;    // sequences that hold pages, and a slot, at the same time
  int64_t max_positions = 0;     // tokens of a sequence, prompt and completion together
};

class StepModel {
 public:
  virtual ~StepModel() = default;
  virtual int64_t pages() const = 0;
  virtual int64_t tokens_per_page() const = 0;
  virtual int64_t vocabulary() const = 0;
  // How many steps are better left under way while the next is planned and sent, so that the device need not
  // wait for the host.
  virtual int64_t lag() const { return 0; }

  // Sends a step of at least one row on its way. A negative token t of the batch stands for the one that
  // output row -1 - t of the step before draws.
  virtual void launch(const Batch& batch, const SamplingRows& rows) = 0;
  // Waits for the oldest step that has not been collected, and overwrites `result` with what it gave, the
  // same on every tensor-parallel rank.
  virtual void collect(StepResult& result) = 0;
};

}  // namespace sl
