// TrainingPass, backward: gradients of the layers of packed sequences, from the last to the first.
#include <cmath>

#include "kernels/device.hpp"
#include "kernels/ops.hpp"
#include "model/linear.hpp"
#include "model/training_pass.hpp"

namespace sl {

void TrainingPass::backward(const Adapter* adapter, const Trainable& gradients) {
  const ProfilerRange range("backward");
  for (int64_t layer = model_.config->layers - 1; layer >= 0; --layer) {
    if (layer >= kept_layers_ && shared_holder_ != layer) compute_activations(layer, adapter);
    backward_ffn(layer, adapter, gradients);
    backward_attention(layer, adapter, gradients);
  }
  if (gradients.parameters != nullptr) {
    run(model_.context, EmbeddingBackward{.tokens = tokens_,
                                          .grad_out = gradient_,
                                          .first_row = model_.shard->vocabulary.begin,
                                          .grad_table = gradients.parameters->embedding});
  }
}

void TrainingPass::backward_ffn(int64_t layer, const Adapter* adapter, const Trainable& gradients) {
  const Context& context = model_.context;
  const LayerWeights& weights = weights_of(layer);
  const LayerActivations& kept = activations_of(layer);
  const LayerWeights* full =
      gradients.parameters != nullptr ? &gradients.parameters->layers[static_cast<size_t>(layer)] : nullptr;
  const int64_t mark = arena_.mark();
  const Tensor grad_out = stored(gradient_);

  // down
  const Tensor product = take(rows_, ffn_);
  activate(layer, product);
  const Tensor grad_product = take(rows_, ffn_);
  linear_input_gradient(context, grad_out, weights.down, grad_product);
  if (adapter != nullptr) {
    const Tensor low = take(rows_, adapter->shape().rank);
    linear(context, product, adapter->stacked_a(layer, down_group), low);
    backward_lora(adapter, gradients, layer, down_group, product, low, grad_out, grad_product);
  }
  if (full != nullptr) linear_weight_gradient(context, grad_out, product, full->down);

  // gate and up; their gradient takes their place
  const Tensor grad_gate_up = kept.gate_up;
  run(context,
      SwiGluBackward{.gate_up = kept.gate_up, .grad_out = grad_product, .grad_gate_up = grad_gate_up});
  const Tensor x = normalised(kept.middle, weights.ffn_norm);
  const Tensor grad_x = take(rows_, model_.config->hidden);
  linear_input_gradient(context, grad_gate_up, weights.gate_up, grad_x);
  backward_lora(adapter, gradients, layer, gate_up_group, x, kept.low_gate_up, grad_gate_up, grad_x);
  if (full != nullptr) linear_weight_gradient(context, grad_gate_up, x, full->gate_up);
  reduce(grad_x);

  run(context, RmsNormBackward{.x = kept.middle,
                               .weight = weights.ffn_norm,
                               .epsilon = model_.config->rms_epsilon,
                               .grad_out = grad_x,
                               .grad_x = gradient_,
                               .grad_weight = full != nullptr ? full->ffn_norm : Tensor()});
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
  const Tensor grad_out = stored(gradient_);

  // output projection
  const Tensor grad_attention = take(rows_, query_width_);
  linear_input_gradient(context, grad_out, weights.output, grad_attention);
  backward_lora(adapter, gradients, layer, output_group, kept.attention, kept.low_output, grad_out,
                grad_attention);
  if (full != nullptr) linear_weight_gradient(context, grad_out, kept.attention, full->output);

  // attention and rotation
  const Tensor grad_qkv = take(rows_, qkv_width);
  run(context, PackedAttentionBackward{.qkv = kept.qkv,
                                       .offsets = offsets_,
                                       .query_heads = model_.shard->query_heads.size(),
                                       .key_heads = model_.shard->key_heads.size(),
                                       .scale = 1.0F / std::sqrt(static_cast<float>(model_.config->head_dim)),
                                       .out = kept.attention,
                                       .log_sum_exp = kept.log_sum_exp,
                                       .grad_out = grad_attention,
                                       .grad_qkv = grad_qkv});
  rotate(grad_qkv, /*inverse=*/true);

  // query, key and value projections
  const Tensor x = normalised(residual(layer), weights.attention_norm);
  const Tensor grad_x = take(rows_, model_.config->hidden);
  linear_input_gradient(context, grad_qkv, weights.qkv, grad_x);
  backward_lora(adapter, gradients, layer, qkv_group, x, kept.low_qkv, grad_qkv, grad_x);
  if (full != nullptr) {
    linear_weight_gradient(context, grad_qkv, x, full->qkv);
    if (full->qkv_bias.defined()) {
      const Tensor ones = take(1, rows_);
      run(context, Fill{ones, 1.0F});
      run(context,
          Gemm{.a = ones, .b = grad_qkv, .out = full->qkv_bias.reshaped({1, qkv_width}), .beta = 1.0F});
    }
  }
  // An adapter's gradients do not need that of the embedded tokens.
  if (layer > 0 || full != nullptr) {
    reduce(grad_x);
    run(context, RmsNormBackward{.x = residual(layer),
                                 .weight = weights.attention_norm,
                                 .epsilon = model_.config->rms_epsilon,
                                 .grad_out = grad_x,
                                 .grad_x = gradient_,
                                 .grad_weight = full != nullptr ? full->attention_norm : Tensor()});
  }
  arena_.release(mark);
}

// Of out += scale * low B^T with low = x A^T, for each projection of the group in its columns of out: adds to
// the gradients of A, B and x.
void TrainingPass::backward_lora(const Adapter* adapter, const Trainable& gradients, int64_t layer,
                                 ProjectionGroup group, const Tensor& x, const Tensor& low,
                                 const Tensor& grad_out, const Tensor& grad_x) {
  if (adapter == nullptr) return;
  const Context& context = model_.context;
  const int64_t rank = adapter->shape().rank;
  const float scale = adapter->shape().scale();
  const int64_t mark = arena_.mark();
  const Tensor grad_low = take(rows_, low.columns());
  int64_t begin = 0, low_begin = 0;
  for (const Projection projection : group) {
    const Tensor b = adapter->pair(layer, projection).b;
    const Tensor grad = grad_out.columns(begin, begin + b.rows());
    linear_weight_gradient(context, grad, low.columns(low_begin, low_begin + rank),
                           gradients.adapter->pair(layer, projection).b, scale);
    linear_input_gradient(context, grad, b, grad_low.columns(low_begin, low_begin + rank), scale);
    low_begin += rank;
    begin += b.rows();
  }
  linear_weight_gradient(context, grad_low, x, gradients.adapter->stacked_a(layer, group));
  linear_input_gradient(context, grad_low, adapter->stacked_a(layer, group), grad_x, 1.0F, 1.0F);
  arena_.release(mark);
}

}  // namespace sl
