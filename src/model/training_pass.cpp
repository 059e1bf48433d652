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
  return Arena::bytes_for(storage, {rows, query_width_ + 2 * key_width_}) +
         Arena::bytes_for(storage, {rows, query_width_}) +
         matrix_bytes(rows, model_.shard->query_heads.size()) + matrix_bytes(rows, model_.config->hidden) +
         Arena::bytes_for(storage, {rows, 2 * ffn_}) +
         Arena::bytes_for(storage, {rows, 3 * shape_.lora_rank}) +
         Arena::bytes_for(storage, {rows, shape_.lora_rank}) +
         Arena::bytes_for(storage, {rows, 2 * shape_.lora_rank});
}

int64_t TrainingPass::fixed_bytes() const {
  const int64_t rows = shape_.max_rows;
  const int64_t residuals = shape_.gradients ? model_.config->layers + 2 : 2;  // and the gradient of one
  const int64_t packed_b = model_.config->layers *
                           Arena::bytes_for(model_.context.storage, {(shape_.lora_rank + 1) / 2, 4 * ffn_});
  return residuals * matrix_bytes(rows, model_.config->hidden) + 8 * matrix_bytes(rows + 1, 1) +
         (shape_.lora_rank > 0 ? packed_b : 0) + scratch_bytes();
}

int64_t TrainingPass::scratch_bytes() const {
  const int64_t rows = shape_.max_rows;
  const int64_t hidden = model_.config->hidden;
  const int64_t chunk = chunk_rows_;
  const DType storage = model_.context.storage;
  const auto storage_bytes = [&](int64_t height, int64_t width) {
    return Arena::bytes_for(storage, {height, width});
  };
  const auto rounded_bytes = [&](int64_t height, int64_t width) {  // of stored()
    return storage == DType::f32 ? 0 : storage_bytes(height, width);
  };
  const int64_t head = 2 * matrix_bytes(chunk, hidden) + 2 * storage_bytes(chunk, hidden) +
                       matrix_bytes(chunk, vocabulary_) + rounded_bytes(chunk, vocabulary_) +
                       matrix_bytes(3 * (model_.shard->tp + 1), chunk) + matrix_bytes(chunk, 1);
  const int64_t common = 2 * storage_bytes(rows, hidden) + rounded_bytes(rows, hidden) +
                         storage_bytes(rows, shape_.lora_rank * 3) + storage_bytes(rows, shape_.lora_rank);
  const int64_t attention = storage_bytes(rows, query_width_) +
                            storage_bytes(rows, query_width_ + 2 * key_width_) + storage_bytes(1, rows);
  const int64_t ffn = 2 * storage_bytes(rows, ffn_);
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
  require(rows_ > 0 && rows_ <= shape_.max_rows, "a packed batch has more rows than the pass was made for");
  require(static_cast<int64_t>(batch.targets.size()) == rows_ &&
              static_cast<int64_t>(batch.weights.size()) == rows_ && batch.offsets.size() >= 2 &&
              batch.offsets.front() == 0 && batch.offsets.back() == rows_,
          "the arrays of a packed batch disagree");
  require(adapter == nullptr || adapter->shape().rank <= shape_.lora_rank,
          "an adapter has a higher rank than the pass was made for");
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
    residuals_.push_back(take_f32(rows_, hidden));
  }
  if (shape_.gradients) gradient_ = take_f32(rows_, hidden);
  activations_.clear();
  const int64_t slots = kept_layers_ == model_.config->layers ? kept_layers_ : kept_layers_ + 1;
  const int64_t rank = adapter != nullptr ? adapter->shape().rank : 0;
  for (int64_t i = 0; i < slots; ++i) activations_.push_back(take_activations(rank));
  shared_holder_ = -1;
}

// B of gate and up as the activation wants it. Before the batch's arrays are placed: that waits for the
// device, and the kernels of the activation read B without waiting for what was sent before them.
void TrainingPass::place_adapter(const Adapter* adapter) {
  packed_gate_up_.clear();
  ranges_ = Tensor();
  if (adapter == nullptr || adapter->shape().rank % 8 != 0) return;
  const auto rank = static_cast<int32_t>(adapter->shape().rank);
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

TrainingPass::LayerActivations TrainingPass::take_activations(int64_t rank) {
  return {.qkv = take(rows_, query_width_ + 2 * key_width_),
          .attention = take(rows_, query_width_),
          .log_sum_exp = take_f32(rows_, model_.shard->query_heads.size()),
          .middle = take_f32(rows_, model_.config->hidden),
          .gate_up = take(rows_, 2 * ffn_),
          .low_qkv = take(rows_, 3 * rank),
          .low_output = take(rows_, rank),
          .low_gate_up = take(rows_, 2 * rank)};
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

// Products want inputs of the storage dtype: the tensor itself, or a rounded copy in the arena.
Tensor TrainingPass::stored(const Tensor& tensor) {
  if (tensor.dtype() == model_.context.storage) return tensor;
  const Tensor rounded = take(tensor.rows(), tensor.columns());
  run(model_.context, Copy{tensor, rounded});
  return rounded;
}

LossSums TrainingPass::forward_backward(const PackedBatch& batch, const Adapter* adapter,
                                        const Trainable& gradients) {
  require(shape_.gradients, "a pass without gradients was asked for some");
  require((gradients.adapter != nullptr) == (adapter != nullptr) &&
              (gradients.adapter == nullptr) != (gradients.parameters == nullptr),
          "gradients are of the adapter in use, or of all weights without one");
  start(batch, adapter);
  forward(adapter);
  const LossSums sums = head(&gradients);
  // Without a target nothing depends on the weights.
  if (sums.target_rows > 0) backward(adapter, gradients);
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
      // A replicated LoRA matrix got what belongs to this rank; a norm's weight got everything.
      if (gradients.adapter != nullptr) reduce(tensor.local);
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
