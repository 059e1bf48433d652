// TrainingPass, backward: gradients of the layers of packed sequences, from the last to the first.
#include <cmath>

#include "core/activity.hpp"
#include "kernels/device.hpp"
#include "kernels/ops.hpp"
#include "model/linear.hpp"
#include "model/training_pass.hpp"

namespace sl {

void TrainingPass::backward(const Adapter* adapter, const Trainable& gradients, const LayerDone& layer_done) {
  const ProfilerRange range("backward");
  if (rounded_own_.defined()) run(model_.context, Copy{gradient_, rounded_own_});
  for (int64_t layer = model_.config->layers - 1; layer >= 0; --layer) {
    activity().progress();
    if (layer >= kept_layers_ && shared_holder_ != layer) compute_activations(layer, adapter);
    backward_ffn(layer, adapter, gradients);
    backward_attention(layer, adapter, gradients);
    if (layer_done) layer_done(layer);
  }
  if (gradients.parameters != nullptr) {
    const int64_t mark = arena_.mark();
    run(model_.context, EmbeddingBackward{.tokens = tokens_,
                                          .grad_out = gathered(gradient_),
                                          .first_row = model_.shard->vocabulary.begin,
                                          .grad_table = gradients.parameters->embedding});
    arena_.release(mark);
  }
}

// The gradient of the residual, of all rows, as products take it.
const TrainingPass::WithLow& TrainingPass::gathered_gradient() {
  if (alone()) return rounded_gradient_;
  const int64_t mark = arena_.mark();
  run(model_.context,
      Copy{gathered(rounded_own_.defined() ? rounded_own_ : gradient_), rounded_gradient_.outputs});
  arena_.release(mark);
  return rounded_gradient_;
}

void TrainingPass::backward_ffn(int64_t layer, const Adapter* adapter, const Trainable& gradients) {
  const Context& context = model_.context;
  const LayerWeights& weights = weights_of(layer);
  const LayerActivations& kept = activations_of(layer);
  const LayerWeights* full =
      gradients.parameters != nullptr ? &gradients.parameters->layers[static_cast<size_t>(layer)] : nullptr;
  const int64_t mark = arena_.mark();
  const WithLow& grad_out = gathered_gradient();
  const Tensor grad_x = take_padded(context.storage);
  const Tensor product = take(rows_, ffn_);

  // The activation's gradient takes its place, and then, for all weights, the activation; gate_up's gradient
  // takes its.
  add_b_gradients(adapter, gradients, layer, down_group, low_down_[static_cast<size_t>(layer)], grad_out);
  linear_input_gradient(context, grad_out.all, weights.with_room.down.rows(0, grad_out.all.columns()),
                        product);
  const WithLow& grad_gate_up = kept.gate_up;  // the gradient of x A^T takes its place, too
  SwiGluBackward activation = {.gate_up = kept.gate_up.outputs,
                               .grad_out = product,
                               .grad_gate_up = grad_gate_up.outputs,
                               .product = product,
                               .adapters = part_of_gate_up(layer)};
  if (adapter != nullptr) {
    const auto of_b = b_gradients(adapter, gradients, layer, gate_up_group, kept.gate_up.low, grad_gate_up);
    activation.gate = of_b.front();
    activation.up = of_b.back();
    activation.down_grad_low = grad_out.low;
    activation.down_grad_a = gradients.adapter->stacked_a(layer, down_group);
  }
  run(context, activation);

  if (full != nullptr) linear_weight_gradient(context, grad_out.outputs, product, full->down);

  // gate and up
  linear_input_gradient(context, grad_gate_up.all,
                        weights.with_room.gate_up.rows(0, grad_gate_up.all.columns()), grad_x.rows(0, rows_));
  const Tensor x = gathered(norm_gradient(kept.middle, weights.ffn_norm, own_share(grad_x),
                                          full != nullptr ? full->ffn_norm : Tensor()));
  add_a_gradients(adapter, gradients, layer, gate_up_group, x, grad_gate_up);
  if (full != nullptr) linear_weight_gradient(context, grad_gate_up.outputs, x, full->gate_up);
  arena_.release(mark);
}

void TrainingPass::backward_attention(int64_t layer, const Adapter* adapter, const Trainable& gradients) {
  const Context& context = model_.context;
  const LayerWeights& weights = weights_of(layer);
  const LayerActivations& kept = activations_of(layer);
  const LayerWeights* full =
      gradients.parameters != nullptr ? &gradients.parameters->layers[static_cast<size_t>(layer)] : nullptr;
  const int64_t qkv_width = query_width_ + 2 * key_width_;
  const int64_t mark = arena_.mark();
  const WithLow& grad_out = gathered_gradient();

  // output projection
  const Tensor grad_attention = take(rows_, query_width_);
  add_b_gradients(adapter, gradients, layer, output_group, kept.attention.low, grad_out);
  linear_input_gradient(context, grad_out.all, weights.with_room.output.rows(0, grad_out.all.columns()),
                        grad_attention);
  add_a_gradients(adapter, gradients, layer, output_group, kept.attention.outputs, grad_out);
  if (full != nullptr)
    linear_weight_gradient(context, grad_out.outputs, kept.attention.outputs, full->output);

  // attention and rotation
  const WithLow grad_qkv = take_with_low(context.storage, qkv_width, 3);
  run(context, PackedAttentionBackward{.qkv = kept.qkv.outputs,
                                       .offsets = offsets_,
                                       .query_heads = model_.shard->query_heads.size(),
                                       .key_heads = model_.shard->key_heads.size(),
                                       .scale = 1.0F / std::sqrt(static_cast<float>(model_.config->head_dim)),
                                       .out = kept.attention.outputs,
                                       .log_sum_exp = kept.log_sum_exp,
                                       .grad_out = grad_attention,
                                       .grad_qkv = grad_qkv.outputs});
  rotate(grad_qkv.outputs, /*inverse=*/true);

  // query, key and value projections
  add_b_gradients(adapter, gradients, layer, qkv_group, kept.qkv.low, grad_qkv);
  Tensor own_x;
  if (layer > 0 || full != nullptr) {
    const Tensor grad_x = take_padded(context.storage);
    linear_input_gradient(context, grad_qkv.all, weights.with_room.qkv.rows(0, grad_qkv.all.columns()),
                          grad_x.rows(0, rows_));
    own_x = norm_gradient(residual(layer), weights.attention_norm, own_share(grad_x),
                          full != nullptr ? full->attention_norm : Tensor());
  } else {  // an adapter's gradients do not need that of the embedded tokens
    own_x = normalised(residual(layer), weights.attention_norm);
  }
  const Tensor x = gathered(own_x);
  add_a_gradients(adapter, gradients, layer, qkv_group, x, grad_qkv);
  if (full != nullptr) {
    linear_weight_gradient(context, grad_qkv.outputs, x, full->qkv);
    if (full->qkv_bias.defined()) {
      const Tensor ones = take(1, rows_);
      run(context, Fill{ones, 1.0F});
      run(context, Gemm{.a = ones,
                        .b = grad_qkv.outputs,
                        .out = full->qkv_bias.reshaped({1, qkv_width}),
                        .beta = 1.0F});
    }
  }
  arena_.release(mark);
}

// gradient_ and its rounded form become those of the residual before the norm. Returns what the norm gave, a
// new tensor of the arena.
Tensor TrainingPass::norm_gradient(const Tensor& x, const Tensor& weight, const Tensor& grad_out,
                                   const Tensor& grad_weight) {
  const Tensor out = take(x.rows(), x.columns());
  run(model_.context, RmsNormBackward{.x = x,
                                      .weight = weight,
                                      .epsilon = model_.config->rms_epsilon,
                                      .grad_out = grad_out,
                                      .grad_x = gradient_,
                                      .grad_weight = grad_weight,
                                      .rounded = rounded_own_,
                                      .normalised = out});
  return out;
}

// The gradients of an adapter. With low = x A^T, to each projection of a group is added scale * low B^T, in
// its columns of the output.

// To those of B is added scale * grad_out^T low; beside grad_out comes the gradient of low, scale * grad_out
// B.
std::vector<LowRankBackward> TrainingPass::b_gradients(const Adapter* adapter, const Trainable& gradients,
                                                       int64_t layer, ProjectionGroup group,
                                                       const Tensor& low, const WithLow& grad_out) {
  std::vector<LowRankBackward> result;
  int64_t begin = 0, low_begin = 0;
  for (const Projection projection : group) {
    const Tensor b = adapter->pair(layer, projection).b;
    const int64_t end = begin + b.rows(), low_end = low_begin + rank_;
    result.push_back({.grad_out = grad_out.outputs.columns(begin, end),
                      .low = low.columns(low_begin, low_end),
                      .b = b,
                      .scale = adapter->shape().scale(),
                      .grad_b = gradients.adapter->pair(layer, projection).b,
                      .grad_low = grad_out.low.columns(low_begin, low_end)});
    begin = end;
    low_begin = low_end;
  }
  return result;
}

void TrainingPass::add_b_gradients(const Adapter* adapter, const Trainable& gradients, int64_t layer,
                                   ProjectionGroup group, const Tensor& low, const WithLow& grad_out) {
  if (adapter != nullptr)
    run(model_.context, LowRankBackwards{b_gradients(adapter, gradients, layer, group, low, grad_out)});
}

// To those of A is added (gradient of low)^T x.
void TrainingPass::add_a_gradients(const Adapter* adapter, const Trainable& gradients, int64_t layer,
                                   ProjectionGroup group, const Tensor& x, const WithLow& grad_out) {
  if (adapter == nullptr) return;
  linear_weight_gradient(model_.context, grad_out.low, x, gradients.adapter->stacked_a(layer, group));
}

}  // namespace sl
