#include "model/served_adapters.hpp"

#include <initializer_list>
#include <utility>

#include "kernels/device.hpp"
#include "kernels/ops.hpp"
#include "model/transformer.hpp"

namespace sl {
namespace {

// Kernels take eight numbers of the rank at a time.
int64_t padded(int64_t rank) { return (rank + 7) / 8 * 8; }

// Shapes of the packed B of a layer, in the order of ServedAdapters::Layer.
std::array<std::array<int64_t, 2>, 4> packed_shapes(const LayerWeights& layer, int64_t rank) {
  const auto of = [rank](const Tensor& weight) {
    return std::array<int64_t, 2>{rank / 2, 2 * weight.rows()};
  };
  return {of(layer.qkv), of(layer.output), of(layer.gate_up), of(layer.down)};
}

}  // namespace

int64_t ServedAdapters::room_for(std::span<const LoraShape> shapes) {
  int64_t rank = 0;
  for (const LoraShape& shape : shapes) rank += padded(shape.rank);
  return rank;
}

int64_t ServedAdapters::bytes(const Transformer& model) {
  const Parameters& parameters = *model.parameters;
  if (parameters.adapter_rank() == 0) return 0;
  int64_t bytes = 0;
  for (const LayerWeights& layer : parameters.layers) {
    for (const auto& [rows, columns] : packed_shapes(layer, parameters.adapter_rank()))
      bytes += Arena::bytes_for(model.context.storage, {rows, columns});
  }
  return bytes;
}

ServedAdapters::ServedAdapters(const Transformer& model)
    : context_(model.context), parameters_(model.parameters), rank_(model.parameters->adapter_rank()) {
  if (rank_ == 0) return;
  buffer_ = Buffer(context_.device, bytes(model), "adapters in use");
  char* next = static_cast<char*>(buffer_.data());
  for (const LayerWeights& weights : parameters_->layers) {
    Layer& layer = layers_.emplace_back();
    Tensor* const parts[] = {&layer.qkv, &layer.output, &layer.gate_up, &layer.down};
    size_t part = 0;
    for (const auto& [rows, columns] : packed_shapes(weights, rank_)) {
      *parts[part++] = Tensor(next, context_.storage, context_.device, {rows, columns});
      next += Arena::bytes_for(context_.storage, {rows, columns});
    }
  }
}

void ServedAdapters::load(std::span<const Adapter* const> adapters) {
  ranges_.clear();
  int64_t used = 0;
  for (const Adapter* adapter : adapters) {
    const int64_t end = used + padded(adapter->shape().rank);
    require(end <= rank_, "there is no room for so many adapters, or of that rank");
    load(*adapter, used);
    ranges_.push_back({static_cast<int32_t>(used), static_cast<int32_t>(end)});
    used = end;
  }
  synchronize(context_);
}

void ServedAdapters::load(const Adapter& adapter, int64_t begin) {
  const int64_t rank = adapter.shape().rank, end = begin + padded(rank);
  std::vector<Copy> copies;
  // One matrix: projections whose outputs lie one after the other.
  const auto load_matrix = [&](int64_t layer, const Tensor& weight, const Tensor& with_room, const Tensor& b,
                               std::initializer_list<Projection> projections) {
    int64_t room = weight.rows(), output = 0;
    for (const Projection projection : projections) {
      const LoraPair& pair = adapter.pair(layer, projection);
      copies.push_back({pair.a, with_room.rows(room + begin, room + begin + rank)});
      if (begin + rank < end) run(context_, Fill{with_room.rows(room + begin + rank, room + end), 0.0F});
      run(context_,
          PackLowRank{.b = pair.b,
                      .scale = adapter.shape().scale(),
                      .out = b.rows(begin / 2, end / 2).columns(2 * output, 2 * (output + pair.b.rows()))});
      room += rank_;
      output += pair.b.rows();
    }
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LayerWeights& weights = parameters_->layers[i];
    const auto layer = static_cast<int64_t>(i);
    load_matrix(layer, weights.qkv, weights.with_room.qkv, layers_[i].qkv,
                {Projection::q, Projection::k, Projection::v});
    load_matrix(layer, weights.output, weights.with_room.output, layers_[i].output, {Projection::o});
    load_matrix(layer, weights.gate_up, weights.with_room.gate_up, layers_[i].gate_up,
                {Projection::gate, Projection::up});
    load_matrix(layer, weights.down, weights.with_room.down, layers_[i].down, {Projection::down});
  }
  run(context_, Copies{copies});
}

std::array<int32_t, 2> ServedAdapters::range(int32_t adapter) const {
  if (adapter < 0) return {0, 0};
  require(adapter < static_cast<int32_t>(ranges_.size()), "a row of an adapter that is not there");
  return ranges_[static_cast<size_t>(adapter)];
}

}  // namespace sl
