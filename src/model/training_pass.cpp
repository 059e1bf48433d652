#include "model/training_pass.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "core/error.hpp"
#include "kernels/ops.hpp"

namespace sl {
namespace {

int64_t matrix_bytes(int64_t rows, int64_t columns) { return Arena::bytes_for(DType::f32, {rows, columns}); }

int64_t logit_bytes_of(const TrainingShape& shape, Device device) {
  if (shape.logit_bytes > 0) return shape.logit_bytes;
  return int64_t{device == Device::cuda ? 1024 : 64} << 20;
}

// Columns for the low-rank numbers of so many projections beside their outputs; also the rows of A behind
// their weights.
int64_t low_columns(int64_t projections, int64_t rank) { return (projections * rank + 7) / 8 * 8; }

// Rows of a matrix of both begin at multiples of 128 bytes.
int64_t width_with_low(int64_t outputs, int64_t projections, int64_t rank) {
  return (outputs + low_columns(projections, rank) + 63) / 64 * 64;
}

int64_t mebibytes(int64_t bytes) { return (bytes + (1 << 20) - 1) >> 20; }

// The part of a tensor of `whole` length along its sharded rows that is held here.
Tensor rows_of(const Tensor& whole, Range range) { return whole.rows(range.begin, range.end); }

}  // namespace

const std::vector<ShardedTensor>& Trainable::tensors() const {
  require((adapter == nullptr) != (parameters == nullptr), "either an adapter or all weights are trained");
  return adapter != nullptr ? adapter->tensors() : parameters->tensors();
}

TrainingPass::TrainingPass(const Transformer& model, const TrainingShape& shape, int64_t budget)
    : model_(model),
      shape_(shape),
      query_width_(model.shard->query_heads.size() * model.config->head_dim),
      key_width_(model.shard->key_heads.size() * model.config->head_dim),
      ffn_(model.shard->ffn.size()),
      vocabulary_(model.shard->vocabulary.size()) {
  require(shape.max_rows > 0 && shape.lora_rank >= 0, "a training pass needs rows");
  // The same on every tensor-parallel rank, whose shares of the vocabulary may differ by a row.
  const int64_t widest = (model.config->vocabulary + model.shard->tp - 1) / model.shard->tp;
  chunk_rows_ = std::clamp<int64_t>(
      logit_bytes_of(shape, model.context.device) / (widest * size_of(DType::f32)), 1, shape.max_rows);

  const int64_t layers = model.config->layers;
  const int64_t fixed = fixed_bytes();
  const int64_t slot = activation_bytes();
  int64_t slots = 1;  // the last one is shared by the layers that do not keep theirs
  if (shape.gradients && shape.recompute == Recompute::none) slots = layers;
  if (shape.gradients && shape.recompute == Recompute::automatic) {
    slots = std::clamp<int64_t>((budget - fixed) / slot, 1, layers);
  }
  kept_layers_ = slots == layers ? layers : slots - 1;
  const int64_t bytes = fixed + slots * slot;
  if (bytes > budget) {
    throw InputError(fmt::format("a training pass of {} tokens needs {} MiB of activations, of which {} MiB "
                                 "are free",
                                 shape.max_rows, mebibytes(bytes), mebibytes(std::max<int64_t>(budget, 0))),
                     "training", "lower the cut-off or the tokens of a pass, or use more ranks a replica");
  }
  arena_ = Arena(model.context.device, bytes, "training activations");
  const std::vector<float> frequencies = model.config->rope_frequencies();
  const auto pairs = static_cast<int64_t>(frequencies.size());
  constants_ = Buffer(model.context.device, pairs * size_of(DType::f32), "constants");
  frequencies_ = Tensor(constants_.data(), DType::f32, model.context.device, {pairs});
  upload(frequencies_, std::span(frequencies));
}

int64_t TrainingPass::activation_bytes() const {
  const int64_t rows = shape_.max_rows;
  const DType storage = model_.context.storage;
  const auto with_low = [&](int64_t outputs, int64_t projections) {
    return Arena::bytes_for(storage, {rows, width_with_low(outputs, projections, shape_.lora_rank)});
  };
  return with_low(query_width_ + 2 * key_width_, 3) + with_low(query_width_, 1) +
         matrix_bytes(rows, model_.shard->query_heads.size()) +
         matrix_bytes(most_own_rows(), model_.config->hidden) + with_low(2 * ffn_, 2);
}

int64_t TrainingPass::fixed_bytes() const {
  const int64_t rows = shape_.max_rows;
  const int64_t hidden = model_.config->hidden;
  const DType storage = model_.context.storage;
  const int64_t residuals = shape_.gradients ? model_.config->layers + 1 : 2;
  const int64_t wide = width_with_low(hidden, 1, shape_.lora_rank);
  const int64_t own = most_own_rows();
  const int64_t gradient = Arena::bytes_for(storage, {rows, wide}) +
                           (storage == DType::f32 && alone() ? 0 : matrix_bytes(own, hidden)) +
                           (storage == DType::f32 || alone() ? 0 : Arena::bytes_for(storage, {own, hidden}));
  const int64_t packed_b =
      model_.config->layers * Arena::bytes_for(storage, {(shape_.lora_rank + 1) / 2, 4 * ffn_});
  const int64_t low_down = model_.config->layers * Arena::bytes_for(storage, {rows, shape_.lora_rank});
  return residuals * matrix_bytes(own, hidden) + (shape_.gradients ? gradient + low_down : 0) +
         8 * matrix_bytes(rows + 1, 1) + (shape_.lora_rank > 0 ? packed_b : 0) + scratch_bytes();
}

int64_t TrainingPass::scratch_bytes() const {
  const int64_t rows = shape_.max_rows;
  const int64_t hidden = model_.config->hidden;
  const int64_t chunk = chunk_rows_;
  const DType storage = model_.context.storage;
  const auto storage_bytes = [&](int64_t height, int64_t width) {
    return Arena::bytes_for(storage, {height, width});
  };
  const int64_t own = most_own_rows();
  const int64_t padded = own * model_.shard->tp;
  const int64_t rounded_logits = storage == DType::f32 ? 0 : storage_bytes(chunk, vocabulary_);
  const int64_t head = (alone() ? 0 : 2 * matrix_bytes(padded, hidden)) + 2 * matrix_bytes(chunk, hidden) +
                       2 * storage_bytes(chunk, hidden) + matrix_bytes(chunk, vocabulary_) + rounded_logits +
                       matrix_bytes(3 * (model_.shard->tp + 1), chunk) + matrix_bytes(chunk, 1);
  const int64_t common = 2 * storage_bytes(padded, hidden) + (alone() ? 0 : 2 * storage_bytes(own, hidden));
  const int64_t attention =
      storage_bytes(rows, query_width_) +
      storage_bytes(rows, width_with_low(query_width_ + 2 * key_width_, 3, shape_.lora_rank)) +
      storage_bytes(1, rows);
  const int64_t ffn = storage_bytes(rows, width_with_low(ffn_, 1, shape_.lora_rank));
  int64_t shared_heads = 0;
  if (shape_.gradients && model_.shard->key_head_copies > 1) {
    shared_heads =
        matrix_bytes(model_.config->key_heads * model_.config->head_dim, std::max(hidden, shape_.lora_rank));
  }
  return std::max({head, common + std::max(attention, ffn), shared_heads});
}

// Places the batch on the device and lays out the arena for its rows.
void TrainingPass::start(const PackedBatch& batch, const Adapter* adapter) {
  rows_ = batch.rows();
  own_rows_ = (rows_ + model_.shard->tp - 1) / model_.shard->tp;
  require(rows_ > 0 && rows_ <= shape_.max_rows, "a packed batch has more rows than the pass was made for");
  require(static_cast<int64_t>(batch.targets.size()) == rows_ &&
              static_cast<int64_t>(batch.weights.size()) == rows_ && batch.offsets.size() >= 2 &&
              batch.offsets.front() == 0 && batch.offsets.back() == rows_,
          "the arrays of a packed batch disagree");
  rank_ = adapter != nullptr ? adapter->shape().rank : 0;
  require(rank_ <= shape_.lora_rank, "an adapter has a higher rank than the pass was made for");
  require(low_columns(1, rank_) <= model_.parameters->adapter_rank(),
          "the weights have no room for the adapter");
  host_positions_.clear();
  host_target_rows_.clear();
  host_target_tokens_.clear();
  host_target_weights_.clear();
  for (size_t s = 0; s + 1 < batch.offsets.size(); ++s) {
    for (int32_t row = batch.offsets[s]; row < batch.offsets[s + 1]; ++row) {
      host_positions_.push_back(row - batch.offsets[s]);
      const auto index = static_cast<size_t>(row);
      if (batch.targets[index] < 0) continue;
      host_target_rows_.push_back(row);
      host_target_tokens_.push_back(batch.targets[index]);
      host_target_weights_.push_back(batch.weights[index]);
    }
  }
  require(static_cast<int64_t>(host_positions_.size()) == rows_,
          "the offsets of a packed batch do not ascend");
  log_probabilities_.assign(host_target_rows_.size(), 0.0);

  arena_.release(0);
  place_adapter(adapter);
  const auto place = [&]<typename T>(const std::vector<T>& host) {
    const Tensor tensor = arena_.take(dtype_of<T>(), {static_cast<int64_t>(host.size())});
    upload(tensor, std::span(host));
    return tensor;
  };
  tokens_ = place(batch.tokens);
  positions_ = place(host_positions_);
  offsets_ = place(batch.offsets);
  target_rows_ = place(host_target_rows_);
  target_tokens_ = place(host_target_tokens_);
  target_weights_ = place(host_target_weights_);
  const int64_t hidden = model_.config->hidden;
  residuals_.clear();
  for (int64_t i = 0; i < (shape_.gradients ? model_.config->layers + 1 : 2); ++i) {
    residuals_.push_back(take_f32(own_rows_, hidden));
  }
  if (shape_.gradients) {
    const bool rounds = model_.context.storage != DType::f32;
    rounded_gradient_ = take_with_low(model_.context.storage, hidden, 1);
    gradient_ = rounds || !alone() ? take_f32(own_rows_, hidden) : rounded_gradient_.outputs;
    if (rounds) rounded_own_ = alone() ? rounded_gradient_.outputs : take(own_rows_, hidden);
  }
  low_down_.clear();
  for (int64_t i = 0; shape_.gradients && i < model_.config->layers; ++i)
    low_down_.push_back(take(rows_, rank_));
  activations_.clear();
  const int64_t slots = kept_layers_ == model_.config->layers ? kept_layers_ : kept_layers_ + 1;
  for (int64_t i = 0; i < slots; ++i) activations_.push_back(take_activations());
  shared_holder_ = -1;
}

// A in the rows and B in the columns behind the weights, and B of gate and up as the activation wants it.
// Before the batch's arrays are placed: that waits for the device, and kernels read weights and B without
// waiting for what was sent before them.
void TrainingPass::place_adapter(const Adapter* adapter) {
  packed_gate_up_.clear();
  ranges_ = Tensor();
  if (adapter == nullptr) return;
  std::vector<Copy> copies;
  for (int64_t layer = 0; layer < model_.config->layers; ++layer) {
    const LayerWeights& weights = weights_of(layer);
    const auto place = [&](const Tensor& weight, const Tensor& with_room, ProjectionGroup group) {
      const Tensor a = adapter->stacked_a(layer, group);
      const int64_t begin = weight.rows(), end = begin + a.rows();
      const int64_t padded = begin + low_columns(static_cast<int64_t>(group.size()), rank_);
      copies.push_back({a, with_room.rows(begin, end)});
      if (end < padded) run(model_.context, Fill{with_room.rows(end, padded), 0.0F});
    };
    const auto place_b = [&](const Tensor& weight, const Tensor& with_room, Projection projection) {
      const int64_t begin = weight.columns(), end = begin + rank_, padded = begin + low_columns(1, rank_);
      copies.push_back({.x = adapter->pair(layer, projection).b,
                        .out = with_room.columns(begin, end),
                        .scale = adapter->shape().scale()});
      if (end < padded) run(model_.context, Fill{with_room.columns(end, padded), 0.0F});
    };
    place(weights.qkv, weights.with_room.qkv, qkv_group);
    place(weights.output, weights.with_room.output, output_group);
    place(weights.gate_up, weights.with_room.gate_up, gate_up_group);
    place(weights.down, weights.with_room.down, down_group);
    place_b(weights.output, weights.with_room_for_b.output, Projection::o);
    place_b(weights.down, weights.with_room_for_b.down, Projection::down);
  }
  run(model_.context, Copies{copies});
  if (rank_ % 8 != 0) return;
  const auto rank = static_cast<int32_t>(rank_);
  for (int64_t layer = 0; layer < model_.config->layers; ++layer) {
    packed_gate_up_.push_back(take(rank / 2, 4 * ffn_));
    for (size_t i = 0; i < gate_up_group.size(); ++i) {
      const int64_t begin = 2 * ffn_ * static_cast<int64_t>(i);
      run(model_.context, PackLowRank{.b = adapter->pair(layer, gate_up_group[i]).b,
                                      .scale = adapter->shape().scale(),
                                      .out = packed_gate_up_.back().columns(begin, begin + 2 * ffn_)});
    }
  }
  std::vector<int32_t> ranges(static_cast<size_t>(2 * rows_), 0);
  for (size_t row = 0; row < ranges.size(); row += 2) ranges[row + 1] = rank;
  ranges_ = arena_.take(DType::i32, {rows_, 2});
  upload(ranges_, std::span<const int32_t>(ranges));
}

TrainingPass::WithLow TrainingPass::take_with_low(DType dtype, int64_t outputs, int64_t projections) {
  const Tensor whole = arena_.take(dtype, {rows_, width_with_low(outputs, projections, rank_)});
  const int64_t low_end = outputs + projections * rank_, end = outputs + low_columns(projections, rank_);
  // What multiplies zeros must be numbers.
  if (low_end < end) run(model_.context, Fill{whole.columns(low_end, end), 0.0F});
  return {.all = whole.columns(0, end),
          .outputs = whole.columns(0, outputs),
          .low = whole.columns(outputs, low_end)};
}

TrainingPass::LayerActivations TrainingPass::take_activations() {
  const DType storage = model_.context.storage;
  return {.qkv = take_with_low(storage, query_width_ + 2 * key_width_, 3),
          .attention = take_with_low(storage, query_width_, 1),
          .log_sum_exp = take_f32(rows_, model_.shard->query_heads.size()),
          .middle = take_f32(own_rows_, model_.config->hidden),
          .gate_up = take_with_low(storage, 2 * ffn_, 2)};
}

TrainingPass::LayerActivations& TrainingPass::activations_of(int64_t layer) {
  return activations_[static_cast<size_t>(std::min(layer, kept_layers_))];
}

const LayerWeights& TrainingPass::weights_of(int64_t layer) const {
  return model_.parameters->layers[static_cast<size_t>(layer)];
}

void TrainingPass::reduce(const Tensor& tensor) const {
  if (model_.shard->tp > 1) model_.tensor_parallel->all_reduce_sum(tensor);
}

LossSums TrainingPass::forward_backward(const PackedBatch& batch, const Adapter* adapter,
                                        const Trainable& gradients, const LayerDone& layer_done) {
  require(shape_.gradients, "a pass without gradients was asked for some");
  require((gradients.adapter != nullptr) == (adapter != nullptr) &&
              (gradients.adapter == nullptr) != (gradients.parameters == nullptr),
          "gradients are of the adapter in use, or of all weights without one");
  start(batch, adapter);
  forward(adapter);
  const LossSums sums = head(&gradients);
  // Without a target nothing depends on the weights.
  if (sums.target_rows > 0) backward(adapter, gradients, layer_done);
  return sums;
}

LossSums TrainingPass::loss_only(const PackedBatch& batch, const Adapter* adapter) {
  start(batch, adapter);
  forward(adapter);
  return head(nullptr);
}

std::vector<double> TrainingPass::log_probabilities(const PackedBatch& batch, const Adapter* adapter) {
  loss_only(batch, adapter);
  return log_probabilities_;
}

void TrainingPass::finish_gradients(const Trainable& gradients) {
  if (model_.shard->tp == 1) return;
  const Context& context = model_.context;
  arena_.release(0);
  for (const ShardedTensor& tensor : gradients.tensors()) {
    if (tensor.axis == ShardedTensor::Axis::replicated) {
      reduce(tensor.local);
      continue;
    }
    if (tensor.copies == 1) continue;
    // Ranks with the same key-value head serve different query heads: the whole tensor sums up in zeros.
    require(tensor.axis == ShardedTensor::Axis::rows, "only rows are held by several ranks");
    const int64_t mark = arena_.mark();
    const int64_t width = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
    const Tensor whole = take_f32(tensor.shape[0], width);
    const Tensor local = tensor.local.reshaped({tensor.range.size(), width});
    run(context, Fill{whole, 0.0F});
    run(context, Copy{local, rows_of(whole, tensor.range)});
    reduce(whole);
    run(context, Copy{rows_of(whole, tensor.range), local});
    arena_.release(mark);
  }
}

}  // namespace sl
