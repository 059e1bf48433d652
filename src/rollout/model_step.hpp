// StepModel over the real model: forward pass, bitmap of seen tokens, sampling.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <tuple>
#include <vector>

#include "core/buffer.hpp"
#include "kernels/device.hpp"
#include "model/transformer.hpp"
#include "rollout/step_model.hpp"

namespace sl {

class ModelStep : public StepModel {
 public:
  // Allocates KV pages, activations, the bitmap and the sampling arrays; nothing is allocated on the device
  // afterwards. What the transformer points to outlives this object.
  ModelStep(const Transformer& model, const EngineOptions& options, int64_t pages, int64_t tokens_per_page);
  ~ModelStep() override;
  // Bytes of device memory that the constructor takes besides the pages.
  static int64_t bytes_besides_pages(const Transformer& model, const EngineOptions& options,
                                     int64_t tokens_per_page);

  // The adapters that requests name by index: copied to where the model has room for them
  // (ServedAdapters::room_for). The engine that runs on this model is idle and must forget its shared pages
  // (clear_shared_pages).
  void set_adapters(std::span<const Adapter* const> adapters);

  int64_t pages() const override { return cache_.pages(); }
  int64_t tokens_per_page() const override { return cache_.tokens_per_page(); }
  int64_t vocabulary() const override { return model_.config->vocabulary; }
  int64_t lag() const override;
  // Both are collective over the tensor-parallel group.
  void launch(const Batch& batch, const SamplingRows& rows) override;
  void collect(StepResult& result) override;

 private:
  // Sampling parameters of the output rows, on the device.
  struct PlacedSampling;
  // A step whose tokens have not been collected.
  struct UnderWay {
    int64_t outputs = 0;
    std::vector<int32_t> chosen;  // by row: a choice, or -1
    std::vector<int32_t> best;    // by row: so many best tokens
    Mark drawn;
  };
  static constexpr size_t most_under_way = 2;

  void copy_rows(const RowCopies& copies, std::span<const Tensor> matrices);
  void mark_seen(const SamplingRows& rows);
  void compute(const Batch& batch, const SamplingRows& rows);
  void compute_decoding(const Batch& batch, const SamplingRows& rows);
  void choose(const Tensor& logits, const SamplingRows& rows, std::vector<int32_t>& chosen) const;
  void draw(const Tensor& logits, const PlacedSampling& sampling, const SamplingRows& rows);

  Transformer model_;
  EngineOptions options_;
  KvCache cache_;
  Inference inference_;
  Buffer seen_buffer_;
  Tensor seen_;  // slots, ceil(vocabulary / 32)
  Buffer drawn_buffer_;
  Tensor drawn_;  // the tokens of the last step
  Buffer best_buffer_;
  Tensor best_tokens_, best_scores_;  // of the last step: output rows, most_best_tokens
  Staging staging_;                   // index and parameter arrays of a step
  Staging seen_staging_;              // tokens to mark, rows to copy
  HostBuffer host_drawn_;             // of the steps under way, one after the other
  HostBuffer host_best_;              // of the steps under way, one after the other: tokens, then scores
  std::vector<Tensor> pages_;         // keys and values of every layer as matrices, a row a page
  std::array<UnderWay, most_under_way> under_way_;
  size_t launched_ = 0, collected_ = 0;  // steps
  // Recorded steps of decoding, by padded number of rows and of pages a sequence, whether any row has an
  // adapter, and how many best tokens all want. An empty one has run once, so that algorithms have been
  // chosen.
  std::map<std::tuple<int64_t, int64_t, bool, int32_t>, std::optional<Graph>> graphs_;
};

}  // namespace sl
