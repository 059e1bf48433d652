// Loss and gradients of packed sequences: forward and explicit backward, layer by layer, written once against
// kernels/ops.hpp. Collective over the tensor-parallel group: every rank of it makes the same calls with the
// same batches. Between the products the ranks share out the rows of a batch (sequence parallelism,
// Korthikanti et al. 2022): of T rows each keeps the residual of S = T / tp, rounded up, and its norms.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/buffer.hpp"
#include "kernels/ops.hpp"
#include "model/adapter.hpp"
#include "model/batch.hpp"
#include "model/parameters.hpp"
#include "model/transformer.hpp"

namespace sl {

// What is trained: an adapter (the weights stay as they are) or all the weights (no adapter). Exactly one is
// set. A gradient and a moment have the same form.
struct Trainable {
  Adapter* adapter = nullptr;
  Parameters* parameters = nullptr;

  const std::vector<ShardedTensor>& tensors() const;
};

enum class Recompute : uint8_t { automatic, all, none };

struct TrainingShape {
  int64_t max_rows = 0;   // rows of the largest batch
  int64_t lora_rank = 0;  // largest rank of an adapter; 0: never an adapter
  bool gradients = true;  // false: only losses and log-probabilities, with far less memory
  // Which layers keep their activations for the backward pass; the others compute them again from the layer's
  // input. automatic: as many keep them as the budget holds. The results do not depend on it, bit for bit.
  Recompute recompute = Recompute::automatic;
  // Logits of one chunk of rows, at most (but one row at least); 0: 64 MiB, on a GPU 1 GiB, where every chunk
  // reads the head once more.
  int64_t logit_bytes = 0;
};

struct LossSums {
  double loss_sum = 0.0;    // sum over rows of weight * -log p(target)
  int64_t target_rows = 0;  // rows with a target
};

using LayerDone = std::function<void(int64_t layer)>;

class TrainingPass {
 public:
  // Takes all its memory here, `budget` bytes at most. InputError when that does not hold one batch.
  TrainingPass(const Transformer& model, const TrainingShape& shape, int64_t budget);

  // Adds the gradient of loss_sum to `gradients`, which are f32 whatever the storage dtype. With
  // `gradients.adapter`, `adapter` is the one that is trained; with `gradients.parameters` there is none. An
  // adapter is of the storage dtype, and the model has room for it (ServedAdapters::room_for), which this
  // overwrites. `layer_done` hears of each layer, from the last to the first, when nothing is added to its
  // gradient any more.
  LossSums forward_backward(const PackedBatch& batch, const Adapter* adapter, const Trainable& gradients,
                            const LayerDone& layer_done = {});
  LossSums loss_only(const PackedBatch& batch, const Adapter* adapter);
  // Natural logarithm of the probability of the target, one for each row that has one, in row order.
  std::vector<double> log_probabilities(const PackedBatch& batch, const Adapter* adapter);

  // Once after the last forward_backward of a step: sums what each tensor-parallel rank holds a part of.
  // Until then the gradients of replicated tensors and of shared key-value heads are this rank's part.
  void finish_gradients(const Trainable& gradients);

  int64_t kept_layers() const { return kept_layers_; }
  int64_t bytes() const { return arena_.capacity(); }

 private:
  // Outputs of a projection group, or their gradient, and beside them in the same rows the low-rank numbers
  // of its projections: x A^T, or their gradient. As A stands behind the weights, one product makes both, and
  // one product with both makes the gradient of x. Or the input of a projection, and x A^T: with scale * B in
  // columns behind the weights, one product of both makes the projection with the adapter's part.
  struct WithLow {
    Tensor all;      // T, outputs and low and zeros up to a multiple of 8 columns
    Tensor outputs;  // T, outputs
    Tensor low;      // T, projections * r; no columns without an adapter
  };

  // What a layer's backward pass reads besides the layer's input. The normalised inputs and the SwiGLU
  // product are cheap and always computed again.
  struct LayerActivations {
    WithLow qkv;         // (Q + 2K) * D outputs, rotated
    WithLow attention;   // Q * D outputs, and the low-rank numbers of the output projection
    Tensor log_sum_exp;  // T, Q, f32
    Tensor middle;       // S, H, f32: the residual between attention and feed-forward
    WithLow gate_up;     // 2F outputs; its gradient during the backward pass
  };

  int64_t activation_bytes() const;  // of one layer
  int64_t fixed_bytes() const;       // everything else
  int64_t scratch_bytes() const;     // what one half of a block, or one chunk of the head, needs for itself
  void start(const PackedBatch& batch, const Adapter* adapter);
  void place_adapter(const Adapter* adapter);
  LayerActivations take_activations();
  LayerActivations& activations_of(int64_t layer);
  Tensor residual(int64_t layer) const { return residuals_[static_cast<size_t>(layer) % residuals_.size()]; }
  const LayerWeights& weights_of(int64_t layer) const;
  Tensor take(int64_t rows, int64_t columns) { return arena_.take(model_.context.storage, {rows, columns}); }
  Tensor take_f32(int64_t rows, int64_t columns) { return arena_.take(DType::f32, {rows, columns}); }
  WithLow take_with_low(DType dtype, int64_t outputs, int64_t projections);
  void reduce(const Tensor& tensor) const;
  bool alone() const { return model_.shard->tp == 1; }
  int64_t most_own_rows() const { return (shape_.max_rows + model_.shard->tp - 1) / model_.shard->tp; }
  Tensor take_padded(DType dtype);
  Tensor gathered(const Tensor& own);
  Tensor own_share(const Tensor& padded);
  Tensor normalised(const Tensor& x, const Tensor& weight);

  // forward.cpp: residual(l + 1) from residual(l).
  void forward(const Adapter* adapter);
  void compute_activations(int64_t layer, const Adapter* adapter);
  void forward_attention(int64_t layer, const Adapter* adapter);
  void forward_gate_up(int64_t layer, const Adapter* adapter);
  void forward_down(int64_t layer, const Adapter* adapter);
  LowRank part_of_gate_up(int64_t layer);
  void add_block(const Tensor& before, const WithLow& x, const Tensor& weight, const Tensor& after);
  void rotate(const Tensor& qkv, bool inverse);
  void add_low_rank(const Adapter* adapter, int64_t layer, ProjectionGroup group, const Tensor& low,
                    const Tensor& out);

  // head.cpp: the rows with a target, in chunks. Fills log_probabilities_; with gradients, gradient_ too.
  LossSums head(const Trainable* gradients);
  void head_chunk(int64_t begin, int64_t end, const Tensor& last, const Trainable* gradients,
                  const Tensor& gradient);
  Tensor log_sum_exp(const Tensor& logits, const Tensor& targets, int64_t begin);

  // backward.cpp: gradient_ goes from the gradient of residual(l + 1) to that of residual(l).
  void backward(const Adapter* adapter, const Trainable& gradients, const LayerDone& layer_done);
  const WithLow& gathered_gradient();
  void backward_ffn(int64_t layer, const Adapter* adapter, const Trainable& gradients);
  void backward_attention(int64_t layer, const Adapter* adapter, const Trainable& gradients);
  Tensor norm_gradient(const Tensor& x, const Tensor& weight, const Tensor& grad_out,
                       const Tensor& grad_weight);
  std::vector<LowRankBackward> b_gradients(const Adapter* adapter, const Trainable& gradients, int64_t layer,
                                           ProjectionGroup group, const Tensor& low, const WithLow& grad_out);
  void add_b_gradients(const Adapter* adapter, const Trainable& gradients, int64_t layer,
                       ProjectionGroup group, const Tensor& low, const WithLow& grad_out);
  void add_a_gradients(const Adapter* adapter, const Trainable& gradients, int64_t layer,
                       ProjectionGroup group, const Tensor& x, const WithLow& grad_out);

  Transformer model_;
  TrainingShape shape_;
  int64_t query_width_, key_width_, ffn_, vocabulary_;  // columns here
  int64_t chunk_rows_ = 0;
  int64_t kept_layers_ = 0;
  Buffer constants_;
  Tensor frequencies_;
  Arena arena_;

  // Of the batch at work; the tensors are views of the arena.
  int64_t rows_ = 0;      // T
  int64_t own_rows_ = 0;  // S
  int64_t rank_ = 0;      // of the adapter; 0: none
  Tensor tokens_, positions_, offsets_;
  Tensor target_rows_, target_tokens_, target_weights_;  // R
  std::vector<int32_t> host_positions_, host_target_rows_, host_target_tokens_;
  // Of an adapter whose part in gate and up the activation adds: B of each layer in LowRank's form, and the
  // ranges of the rows. Undefined where its rank is not a multiple of 8; then products add it.
  std::vector<Tensor> packed_gate_up_;
  Tensor ranges_;
  std::vector<float> host_target_weights_, host_stats_, host_log_sum_exp_;
  std::vector<double> log_probabilities_;  // R
  std::vector<Tensor> residuals_;          // inputs of the layers, and the output of the last
  std::vector<Tensor> low_down_;           // x A^T of down's, of each layer: small, and its x is large
  std::vector<LayerActivations> activations_;
  int64_t shared_holder_ = -1;  // the layer whose activations the shared slot holds
  Tensor gradient_;             // S, H, f32: of the residual
  Tensor rounded_own_;          // S, H: the same in the storage dtype; undefined where that is f32
  // T, H outputs: the same as products take it, of all rows. With one rank the two before are its outputs.
  WithLow rounded_gradient_;
};

}  // namespace sl
