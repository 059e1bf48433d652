// StepModel over the real model: forward pass, bitmap of seen tokens, sampling.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "model/transformer.hpp"
#include "rollout/step_model.hpp"

namespace sl {

class ModelStep : public StepModel {
 public:
  // Allocates KV pages, activations, the bitmap and the sampling arrays; nothing is allocated on the device
  // afterwards. What the transformer points to outlives this object.
  ModelStep(const Transformer& model, const EngineOptions& options, int64_t pages, int64_t tokens_per_page);

  // The adapters that requests name by index; they outlive their use. The engine that runs on this model must
  // forget its shared pages (clear_shared_pages) when an adapter is another or holds other numbers.
  void set_adapters(std::vector<const Adapter*> adapters) { adapters_ = std::move(adapters); }

  int64_t pages() const override { return cache_.pages(); }
  int64_t tokens_per_page() const override { return cache_.tokens_per_page(); }
  int64_t vocabulary() const override { return model_.config->vocabulary; }
  // Collective over the tensor-parallel group.
  void run(const Batch& batch, const SamplingRows& rows, std::vector<int32_t>& sampled) override;

 private:
  void mark_seen(const SamplingRows& rows);
  void choose(const Tensor& logits, const SamplingRows& rows, std::vector<int32_t>& sampled) const;
  void sample(const Tensor& logits, const SamplingRows& rows, std::vector<int32_t>& sampled);
  template <typename T>
  Tensor place(std::span<const T> host);

  Transformer model_;
  KvCache cache_;
  Inference inference_;
  std::vector<const Adapter*> adapters_;
  Buffer seen_buffer_;
  Tensor seen_;  // slots, ceil(vocabulary / 32)
  Arena arena_;  // index and parameter arrays of a step
};

}  // namespace sl
