// TrainingPass, forward: the layers of packed sequences.
#include <cmath>

#include "core/activity.hpp"
#include "kernels/device.hpp"
#include "kernels/ops.hpp"
#include "model/linear.hpp"
#include "model/training_pass.hpp"

namespace sl {

void TrainingPass::forward(const Adapter* adapter) {
  const ProfilerRange range("forward");
  const int64_t mark = arena_.mark();
  const Tensor embedded = alone() ? residual(0) : take_padded(DType::f32);
  run(model_.context, Embedding{.tokens = tokens_,
                                .table = model_.parameters->embedding,
                                .first_row = model_.shard->vocabulary.begin,
                                .out = embedded.rows(0, rows_)});
  if (!alone()) model_.tensor_parallel->reduce_scatter_sum(embedded, residual(0));
  arena_.release(mark);
  for (int64_t layer = 0; layer < model_.config->layers; ++layer) {
    activity().progress();
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
  const int64_t mark = arena_.mark();
  const Tensor x = gathered(normalised(residual(layer), weights.attention_norm));
  const int64_t columns = kept.qkv.all.columns();
  linear(context, x, weights.with_room.qkv.rows(0, columns), kept.qkv.all,
         weights.qkv_bias.defined() ? weights.with_room.qkv_bias.rows(0, columns) : Tensor());
  add_low_rank(adapter, layer, qkv_group, kept.qkv.low, kept.qkv.outputs);
  rotate(kept.qkv.outputs, /*inverse=*/false);
  run(context, PackedAttention{.qkv = kept.qkv.outputs,
                               .offsets = offsets_,
                               .query_heads = model_.shard->query_heads.size(),
                               .key_heads = model_.shard->key_heads.size(),
                               .scale = 1.0F / std::sqrt(static_cast<float>(model_.config->head_dim)),
                               .out = kept.attention.outputs,
                               .log_sum_exp = kept.log_sum_exp});
  if (adapter != nullptr)
    linear(context, kept.attention.outputs, adapter->stacked_a(layer, output_group), kept.attention.low);
  add_block(residual(layer), kept.attention, weights.with_room_for_b.output, kept.middle);
  arena_.release(mark);
}

void TrainingPass::forward_gate_up(int64_t layer, const Adapter* adapter) {
  const LayerWeights& weights = weights_of(layer);
  const LayerActivations& kept = activations_of(layer);
  const int64_t mark = arena_.mark();
  const Tensor x = gathered(normalised(kept.middle, weights.ffn_norm));
  linear(model_.context, x, weights.with_room.gate_up.rows(0, kept.gate_up.all.columns()), kept.gate_up.all);
  if (packed_gate_up_.empty())
    add_low_rank(adapter, layer, gate_up_group, kept.gate_up.low, kept.gate_up.outputs);
  arena_.release(mark);
}

// residual(layer + 1) = middle + feed-forward block
void TrainingPass::forward_down(int64_t layer, const Adapter* adapter) {
  const LayerActivations& kept = activations_of(layer);
  const int64_t mark = arena_.mark();
  const WithLow product = take_with_low(model_.context.storage, ffn_, 1);
  SwiGlu activation = {
      .gate_up = kept.gate_up.outputs, .out = product.outputs, .adapters = part_of_gate_up(layer)};
  if (adapter != nullptr) {
    activation.down_a = adapter->stacked_a(layer, down_group);
    activation.down_low = product.low;
  }
  run(model_.context, activation);
  if (adapter != nullptr && shape_.gradients)
    run(model_.context, Copy{product.low, low_down_[static_cast<size_t>(layer)]});
  add_block(kept.middle, product, weights_of(layer).with_room_for_b.down, residual(layer + 1));
  arena_.release(mark);
}

// What the activation and its gradient add to gate_up; undefined where that has the adapter's part already.
LowRank TrainingPass::part_of_gate_up(int64_t layer) {
  if (packed_gate_up_.empty()) return {};
  return {.low = activations_of(layer).gate_up.low,
          .b = packed_gate_up_[static_cast<size_t>(layer)],
          .ranges = ranges_};
}

// after = before + the sum over the ranks of x W^T with the adapter's part: that is linear in this rank's
// columns of x, too. `weight` has room for B.
void TrainingPass::add_block(const Tensor& before, const WithLow& x, const Tensor& weight,
                             const Tensor& after) {
  const Context& context = model_.context;
  const Tensor with_b = weight.columns(0, x.all.columns());
  const Tensor sum = alone() ? after : take_padded(context.storage);
  const Tensor out = sum.rows(0, rows_);
  if (alone()) {
    linear_onto(context, before, x.all, with_b, out);
  } else {
    linear(context, x.all, with_b, out);
  }
  if (alone()) return;
  run(context, Copy{before, after});
  run(context, Add{.x = own_share(sum), .out = after});
}

// ---- Between the rows of all ranks, T, and those of this rank, S ----

// For T rows, with rows up to what all ranks share out evenly; those are zeros.
Tensor TrainingPass::take_padded(DType dtype) {
  const Tensor tensor = arena_.take(dtype, {own_rows_ * model_.shard->tp, model_.config->hidden});
  if (rows_ < tensor.rows()) run(model_.context, Fill{tensor.rows(rows_, tensor.rows()), 0.0F});
  return tensor;
}

Tensor TrainingPass::gathered(const Tensor& own) {
  if (alone()) return own;
  const Tensor all = arena_.take(own.dtype(), {own_rows_ * model_.shard->tp, own.columns()});
  model_.tensor_parallel->all_gather(own, all);
  return all.rows(0, rows_);
}

// Of the sum over the ranks of what take_padded() gave.
Tensor TrainingPass::own_share(const Tensor& padded) {
  if (alone()) return padded;
  const Tensor own = arena_.take(padded.dtype(), {own_rows_, padded.columns()});
  model_.tensor_parallel->reduce_scatter_sum(padded, own);
  return own;
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

// To each projection's columns of out is added scale * low B^T.
void TrainingPass::add_low_rank(const Adapter* adapter, int64_t layer, ProjectionGroup group,
                                const Tensor& low, const Tensor& out) {
  if (adapter == nullptr) return;
  int64_t begin = 0, low_begin = 0;
  for (const Projection projection : group) {
    const Tensor b = adapter->pair(layer, projection).b;
    linear(model_.context, low.columns(low_begin, low_begin + rank_), b, out.columns(begin, begin + b.rows()),
           {}, adapter->shape().scale(), 1.0F);
    low_begin += rank_;
    begin += b.rows();
  }
}

}  // namespace sl
