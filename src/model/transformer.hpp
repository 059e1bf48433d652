// The model as the rest of the program uses it: weights, adapters, and the two ways to run them. Written once
// against kernels/ops.hpp, for every device.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "dist/communicator.hpp"
#include "model/batch.hpp"
#include "model/config.hpp"
#include "model/parameters.hpp"
#include "model/served_adapters.hpp"
#include "model/staging.hpp"

namespace sl {

// A model on one tensor-parallel rank. Everything it points to outlives it.
struct Transformer {
  Context context;
  const ModelConfig* config = nullptr;
  const Shard* shard = nullptr;
  const Parameters* parameters = nullptr;
  Communicator* tensor_parallel = nullptr;
};

// Pages of keys and values of every layer, for this rank's heads.
class KvCache {
 public:
  KvCache(const ModelConfig& config, const Shard& shard, Placement place, int64_t pages,
          int64_t tokens_per_page);
  static int64_t bytes_per_page(const ModelConfig& config, const Shard& shard, DType dtype,
                                int64_t tokens_per_page);

  int64_t pages() const { return pages_; }
  int64_t tokens_per_page() const { return tokens_per_page_; }
  Tensor keys(int64_t layer) const;    // P, K, G, D
  Tensor values(int64_t layer) const;  // P, K, G, D

 private:
  Buffer buffer_;
  int64_t pages_, tokens_per_page_;
  std::vector<Tensor> keys_, values_;
};

// The largest batch that an Inference runs.
struct InferenceLimits {
  int64_t rows = 0;
  int64_t sequences = 0;
  int64_t outputs = 0;             // rows whose logits are wanted
  int64_t pages_per_sequence = 0;  // entries of a page table
  int64_t tokens_per_page = 0;
};

// A batch's index arrays on the device: what crosses to the model.
struct PlacedBatch {
  // The arrays hold the numbers after the next send() of `staging`.
  PlacedBatch(const Batch& batch, const ServedAdapters& served, Staging& staging);
  static int64_t staging_bytes(int64_t rows, int64_t outputs, int64_t page_entries);

  Tensor tokens, positions, slots, query_offsets, context_lengths, page_tables, output_rows;
  // What LowRank wants: the ranges of the rows, and of the output rows.
  Tensor ranges, output_ranges;
  bool adapters = false;  // some row uses one
  int64_t longest_query = 0;
};

// Runs rollout batches. Owns the activations, sized once for the largest batch.
class Inference {
 public:
  Inference(const Transformer& model, const InferenceLimits& limits);
  // Bytes of device memory that the constructor takes.
  static int64_t bytes(const Transformer& model, const InferenceLimits& limits);

  // The adapters that batches name by index.
  ServedAdapters& adapters() { return adapters_; }

  // Runs the batch: stores its keys and values in `cache` and returns logits (R, whole vocabulary; f32), the
  // same on every tensor-parallel rank, valid until the next call. Sends operations only, always the same
  // ones for batches of the same sizes: they can be recorded.
  Tensor forward(const PlacedBatch& batch, const KvCache& cache);
  // The same from host arrays; it has been computed on return.
  Tensor forward(const Batch& batch, const KvCache& cache);

 private:
  Tensor hidden_states(const PlacedBatch& batch, const KvCache& cache);
  Tensor whole_logits(const Tensor& hidden);

  Transformer model_;
  InferenceLimits limits_;
  ServedAdapters adapters_;
  Tensor frequencies_;
  Buffer constants_;
  Arena arena_;
};

}  // namespace sl
