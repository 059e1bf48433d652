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
  run(context, SwiGlu{.gate_up = kept.gate_up, .out = product});
  const Tensor grad_product = take(rows_, ffn_);
  linear_input_gradient(context, grad_out, weights.down, grad_product);
  backward_lora(adapter, gradients, layer, Projection::down, product, grad_out, grad_product);
  if (full != nullptr) linear_weight_gradient(context, grad_out, product, full->down);

  // gate and up; their gradient takes their place
  const Tensor grad_gate_up = kept.gate_up;
  run(context,
      SwiGluBackward{.gate_up = kept.gate_up, .grad_out = grad_product, .grad_gate_up = grad_gate_up});
  const Tensor x = normalised(kept.middle, weights.ffn_norm);
  const Tensor grad_x = take(rows_, model_.config->hidden);
  linear_input_gradient(context, grad_gate_up, weights.gate_up, grad_x);
  backward_lora(adapter, gradients, layer, Projection::gate, x, grad_gate_up.columns(0, ffn_), grad_x);
  backward_lora(adapter, gradients, layer, Projection::up, x, grad_gate_up.columns(ffn_, 2 * ffn_), grad_x);
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
  const int64_t keys_end = query_width_ + key_width_;
  const int64_t mark = arena_.mark();
  const Tensor grad_out = stored(gradient_);

  // output projection
  const Tensor grad_attention = take(rows_, query_width_);
  linear_input_gradient(context, grad_out, weights.output, grad_attention);
  backward_lora(adapter, gradients, layer, Projection::o, kept.attention, grad_out, grad_attention);
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
  const Tensor grad_q = grad_qkv.columns(0, query_width_);
  const Tensor grad_k = grad_qkv.columns(query_width_, keys_end);
  const Tensor grad_v = grad_qkv.columns(keys_end, qkv_width);
  backward_lora(adapter, gradients, layer, Projection::q, x, grad_q, grad_x);
  backward_lora(adapter, gradients, layer, Projection::k, x, grad_k, grad_x);
  backward_lora(adapter, gradients, layer, Projection::v, x, grad_v, grad_x);
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

// Of out += scale * (x A^T) B^T: adds to the gradients of A, B and x.
void TrainingPass::backward_lora(const Adapter* adapter, const Trainable& gradients, int64_t layer,
                                 Projection projection, const Tensor& x, const Tensor& grad_out,
                                 const Tensor& grad_x) {
  if (adapter == nullptr) return;
  const Context& context = model_.context;
  const LoraPair& pair = adapter->pair(layer, projection);
  const LoraPair& grad = gradients.adapter->pair(layer, projection);
  const float scale = adapter->shape().scale();
  const int64_t mark = arena_.mark();
  const Tensor low = take(rows_, adapter->shape().rank);
  linear(context, x, pair.a, low);
  linear_weight_gradient(context, grad_out, low, grad.b, scale);
  const Tensor grad_low = take(rows_, adapter->shape().rank);
  linear_input_gradient(context, grad_out, pair.b, grad_low, scale);
  linear_weight_gradient(context, grad_low, x, grad.a);
  linear_input_gradient(context, grad_low, pair.a, grad_x, 1.0F, 1.0F);
  arena_.release(mark);
}

}  // namespace sl
