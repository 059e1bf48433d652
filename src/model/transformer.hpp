// The model as the rest of the program uses it: weights, adapters, and the two ways to run them. Written once
// against kernels/ops.hpp, for every device.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "dist/communicator.hpp"
#include "model/adapter.hpp"
#include "model/batch.hpp"
#include "model/config.hpp"
#include "model/parameters.hpp"

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
  KvCache(const ModelConfig& config, const Shard& shard, Device device, int64_t pages,
          int64_t tokens_per_page);
  static int64_t bytes_per_page(const ModelConfig& config, const Shard& shard, int64_t tokens_per_page);

  int64_t pages() const { return pages_; }
  int64_t tokens_per_page() const { return tokens_per_page_; }
  Tensor keys(int64_t layer) const;    // P, K, G, D
  Tensor values(int64_t layer) const;  // P, K, G, D

 private:
  Buffer buffer_;
  int64_t pages_, tokens_per_page_;
  std::vector<Tensor> keys_, values_;
};

// Runs rollout batches. Owns the activations, sized once for the largest batch.
class Inference {
 public:
  // Batches of at most `max_rows` rows and `max_outputs` outputs; page tables of at most `max_page_entries`
  // in all.
  Inference(const Transformer& model, int64_t max_rows, int64_t max_outputs, int64_t max_page_entries);

  // Runs the batch: stores its keys and values in `cache` and returns logits (R, whole vocabulary), the same
  // on every tensor-parallel rank, valid until the next call. Segment adapter i is adapters[i].
  Tensor forward(const Batch& batch, const KvCache& cache, std::span<const Adapter* const> adapters);

  // A view of a step's scratch for the caller (sampling arrays); valid until the next forward.
  Arena& scratch() { return arena_; }

 private:
  Tensor hidden_states(const Batch& batch, const KvCache& cache, std::span<const Adapter* const> adapters);
  Tensor whole_logits(const Tensor& hidden);

  Transformer model_;
  Tensor frequencies_;
  Buffer constants_;
  Arena arena_;
};

}  // namespace sl
