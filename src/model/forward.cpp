// TrainingPass, forward: the layers of packed sequences.
#include <cmath>

#include "kernels/device.hpp"
#include "kernels/ops.hpp"
#include "model/linear.hpp"
#include "model/training_pass.hpp"

namespace sl {

void TrainingPass::forward(const Adapter* adapter) {
  const ProfilerRange range("forward");
  run(model_.context, Embedding{.tokens = tokens_,
                                .table = model_.parameters->embedding,
                                .first_row = model_.shard->vocabulary.begin,
                                .out = residual(0)});
  reduce(residual(0));
  for (int64_t layer = 0; layer < model_.config->layers; ++layer) {
    compute_activations(layer, adapter);
    forward_down(layer, adapter);
  }
}

// What the backward pass of the layer needs, from residual(layer).
void TrainingPass::compute_activations(int64_t layer, const Adapter* adapter) {
  if (layer >= kept_layers_) shared_holder_ = layer;
  forward_attention(layer, adapter);
  forward_gate_up(layer, adapter);
}

// middle = residual(layer) + attention block
void TrainingPass::forward_attention(int64_t layer, const Adapter* adapter) {
  const Context& context = model_.context;
  const LayerWeights& weights = weights_of(layer);
  const LayerActivations& kept = activations_of(layer);
  const int64_t keys_end = query_width_ + key_width_;
  const int64_t mark = arena_.mark();
  const Tensor x = normalised(residual(layer), weights.attention_norm);
  linear(context, x, weights.qkv, kept.qkv, weights.qkv_bias);
  add_lora(adapter, layer, Projection::q, x, kept.qkv.columns(0, query_width_));
  add_lora(adapter, layer, Projection::k, x, kept.qkv.columns(query_width_, keys_end));
  add_lora(adapter, layer, Projection::v, x, kept.qkv.columns(keys_end, keys_end + key_width_));
  rotate(kept.qkv, /*inverse=*/false);
  run(context, PackedAttention{.qkv = kept.qkv,
                               .offsets = offsets_,
                               .query_heads = model_.shard->query_heads.size(),
                               .key_heads = model_.shard->key_heads.size(),
                               .scale = 1.0F / std::sqrt(static_cast<float>(model_.config->head_dim)),
                               .out = kept.attention,
                               .log_sum_exp = kept.log_sum_exp});
  // The low-rank part is linear in this rank's columns, so it is summed together with the rest.
  linear(context, kept.attention, weights.output, kept.middle);
  add_lora(adapter, layer, Projection::o, kept.attention, kept.middle);
  reduce(kept.middle);
  run(context, Add{.x = residual(layer), .out = kept.middle});
  arena_.release(mark);
}

void TrainingPass::forward_gate_up(int64_t layer, const Adapter* adapter) {
  const LayerWeights& weights = weights_of(layer);
  const LayerActivations& kept = activations_of(layer);
  const int64_t mark = arena_.mark();
  const Tensor x = normalised(kept.middle, weights.ffn_norm);
  linear(model_.context, x, weights.gate_up, kept.gate_up);
  add_lora(adapter, layer, Projection::gate, x, kept.gate_up.columns(0, ffn_));
  add_lora(adapter, layer, Projection::up, x, kept.gate_up.columns(ffn_, 2 * ffn_));
  arena_.release(mark);
}

// residual(layer + 1) = middle + feed-forward block
void TrainingPass::forward_down(int64_t layer, const Adapter* adapter) {
  const LayerActivations& kept = activations_of(layer);
  const Tensor out = residual(layer + 1);
  const int64_t mark = arena_.mark();
  const Tensor product = take(rows_, ffn_);
  run(model_.context, SwiGlu{.gate_up = kept.gate_up, .out = product});
  linear(model_.context, product, weights_of(layer).down, out);
  add_lora(adapter, layer, Projection::down, product, out);
  reduce(out);
  run(model_.context, Add{.x = kept.middle, .out = out});
  arena_.release(mark);
}

// A new tensor of the arena.
Tensor TrainingPass::normalised(const Tensor& x, const Tensor& weight) {
  const Tensor out = take(x.rows(), x.columns());
  run(model_.context,
      AddRmsNorm{.residual = x, .weight = weight, .epsilon = model_.config->rms_epsilon, .out = out});
  return out;
}

void TrainingPass::rotate(const Tensor& qkv, bool inverse) {
  run(model_.context, Rope{.qkv = qkv,
                           .positions = positions_,
                           .frequencies = frequencies_,
                           .heads = model_.shard->query_heads.size() + model_.shard->key_heads.size(),
                           .head_dim = model_.config->head_dim,
                           .magnitude = model_.config->rope_magnitude(),
                           .inverse = inverse});
}

void TrainingPass::add_lora(const Adapter* adapter, int64_t layer, Projection projection, const Tensor& x,
                            const Tensor& out) {
  if (adapter == nullptr) return;
  const LoraPair& pair = adapter->pair(layer, projection);
  const int64_t mark = arena_.mark();
  const Tensor low = take(rows_, adapter->shape().rank);
  linear(model_.context, x, pair.a, low);
  linear(model_.context, low, pair.b, out, {}, adapter->shape().scale(), 1.0F);
  arena_.release(mark);
}

}  // namespace sl
