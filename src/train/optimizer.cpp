#include "train/optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <span>

#include "core/error.hpp"
#include "kernels/ops.hpp"

namespace sl {
namespace {

// All the numbers held here, in the same layout for everything of one form.
Tensor flat_of(const Trainable& trainable) {
  return trainable.adapter != nullptr ? trainable.adapter->flat() : trainable.parameters->flat();
}

// Where the flat numbers of each layer begin; embedding, head and last norm lie before them all.
std::vector<int64_t> layer_begins(const Trainable& trainable, int64_t layers) {
  const auto* const first = flat_of(trainable).data<float>();
  std::vector<int64_t> begins;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const Tensor tensor = trainable.adapter != nullptr
                              ? trainable.adapter->stacked_a(layer, qkv_group)
                              : trainable.parameters->layers[static_cast<size_t>(layer)].attention_norm;
    begins.push_back(tensor.data<float>() - first);
  }
  require(std::is_sorted(begins.begin(), begins.end()), "layers do not lie in their order");
  return begins;
}

// Between the places where f32 numbers may be: a context's device, and host memory.
void copy_floats(const Context& context, const Tensor& from, const Tensor& to) {
  if (from.size() == 0) return;
  if (from.device() == to.device()) {
    run(Context{.device = from.device(), .cuda = context.cuda}, Copy{from, to});
  } else if (from.device() == Device::cpu) {
    copy_to_device(to, from.raw(), from.bytes());
  } else {
    copy_to_host(to.raw(), from, from.bytes());
  }
}

}  // namespace

FormOf::FormOf(const Transformer& model, const Trainable& trained, Device device, const char* name) {
  if (trained.adapter != nullptr) {
    adapter_ = std::make_unique<Adapter>(*model.config, *model.shard, trained.adapter->shape(), device, name);
  } else {
    parameters_ = std::make_unique<Parameters>(*model.config, *model.shard, device, name);
  }
}

Tensor FormOf::flat() const { return flat_of(view()); }

Optimizer::Optimizer(const Transformer& model, const Trainable& trained, double weight_decay,
                     Communicator& data_parallel)
    : model_(model),
      trained_(trained),
      weight_decay_(weight_decay),
      data_parallel_(&data_parallel),
      gradient_(model, trained, model.context.device, "gradients") {
  require((trained.adapter == nullptr) != (trained.parameters == nullptr),
          "either an adapter or all weights are trained");
  const Device device = model.context.device;
  const bool exact_storage = model.context.storage == DType::f32;
  const Tensor all = flat_of(trained);
  require(all.dtype() == DType::f32, "what is trained is not f32");
  require(trained.adapter != nullptr || trained.parameters != model.parameters || exact_storage,
          "weights that are stored as bf16 are trained in an f32 form of them");
  if (trained.adapter != nullptr && !exact_storage) {
    rounded_.emplace(*model.config, *model.shard, trained.adapter->shape(), model.context.storage_place(),
                     "adapter");
  }
  require(weights().size() == all.size(), "the model's weights have room for adapters");

  const int replicas = data_parallel.size();
  if (trained.parameters != nullptr) share_ = state_share(all.size(), replicas);
  held_ = held_numbers(all.size(), share_, replicas, data_parallel.rank());
  const int64_t count = held_.back().at + held_.back().count;
  moments_buffer_ = Buffer(device, 2 * count * size_of(DType::f32), "optimizer");
  const Tensor moments(moments_buffer_.data(), DType::f32, device, {2 * count});
  first_moment_ = moments.rows(0, count);
  second_moment_ = moments.rows(count, 2 * count);
  exact_ = all;
  if (share_ > 0) {
    exact_buffer_ = Buffer(device, count * size_of(DType::f32), "optimizer");
    exact_ = Tensor(exact_buffer_.data(), DType::f32, device, {count});
    for (const HeldNumbers& part : held_) {
      copy_floats(model.context, all.rows(part.begin, part.begin + part.count),
                  exact_.rows(part.at, part.at + part.count));
    }
  }
  plan_ = plan_buckets(layer_begins(gradient(), model.config->layers), all.size(), share_, replicas);
  publish();
}

const Tensor& Optimizer::state(Part part) const {
  switch (part) {
    case Part::parameter:
      return exact_;
    case Part::first_moment:
      return first_moment_;
    case Part::second_moment:
      return second_moment_;
  }
  throw BugError("unknown part of the optimizer's state");
}

Tensor Optimizer::weights() const {
  if (rounded_) return rounded_->flat();
  return trained_.adapter != nullptr ? trained_.adapter->flat() : model_.parameters->flat();
}

// What the model computes with becomes what is held exactly, in all replicas.
void Optimizer::publish() {
  const Tensor all = weights();
  for (const HeldNumbers& part : held_) {
    const Tensor exact = exact_.rows(part.at, part.at + part.count);
    const Tensor place = all.rows(part.begin, part.begin + part.count);
    if (exact.raw() != place.raw()) run(model_.context, Copy{exact, place});
  }
  gather(all);
}

// Numbers of the form, of which this replica has its share, become whole.
void Optimizer::gather(const Tensor& all) const {
  if (share_ == 0) return;
  const int64_t begin = held_.front().begin;
  data_parallel_->all_gather(all.rows(begin, begin + share_), all.rows(0, data_parallel_->size() * share_));
}

void Optimizer::zero_gradient() { run(model_.context, Fill{gradient_.flat(), 0.0F}); }

void Optimizer::layer_complete(int64_t layer) {
  const size_t complete = plan_.from_layer_on[static_cast<size_t>(layer)];
  if (data_parallel_->size() == 1 || complete <= sent_) return;
  data_parallel_->send_beside([&] { send_buckets(complete); });
}

void Optimizer::reduce_gradient() {
  if (data_parallel_->size() == 1) return;
  const bool beside = sent_ > 0;
  if (beside) data_parallel_->join();
  send_buckets(plan_.buckets.size());
  sent_ = 0;
}

void Optimizer::send_buckets(size_t count) {
  for (; sent_ < count; ++sent_) {
    const GradientBucket& bucket = plan_.buckets[sent_];
    const Tensor numbers = gradient_.flat().rows(bucket.begin, bucket.end);
    if (bucket.owner < 0) {
      data_parallel_->all_reduce_sum(numbers);
    } else {
      data_parallel_->reduce_sum(numbers, bucket.owner);
    }
  }
}

// Of the replicas: whether this is the one that counts, and saves, these numbers.
bool Optimizer::stands_for(const HeldNumbers& part) const {
  return (share_ > 0 && &part == &held_.front()) || data_parallel_->rank() == 0;
}

// The same of the ranks of a replica.
bool Optimizer::stands_for(const ShardedTensor& tensor) const {
  const int rank = model_.shard->tp_rank;
  return tensor.axis == ShardedTensor::Axis::replicated ? rank == 0 : rank % tensor.copies == 0;
}

double Optimizer::gradient_norm() const {
  double squares = 0.0;
  const auto add = [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    run(model_.context, SumOfSquares{.x = gradient_.flat().rows(begin, end), .result = &squares});
  };
  const auto* const first = gradient_.flat().data<float>();
  for (const HeldNumbers& part : held_) {
    if (share_ > 0 && !stands_for(part)) continue;
    if (model_.shard->tp == 1) {
      add(part.begin, part.begin + part.count);
      continue;
    }
    for (const ShardedTensor& tensor : gradient().tensors()) {
      if (!stands_for(tensor)) continue;
      const int64_t place = tensor.local.data<float>() - first;
      add(std::max(place, part.begin), std::min(place + tensor.local.size(), part.begin + part.count));
    }
  }
  if (share_ > 0) data_parallel_->all_reduce_sum(std::span(&squares, 1));
  model_.tensor_parallel->all_reduce_sum(std::span(&squares, 1));
  return std::sqrt(squares);
}

void Optimizer::update_part(const HeldNumbers& part, double weight_decay, double learning_rate,
                            double gradient_scale) {
  if (part.count == 0) return;
  const auto held = [&](const Tensor& tensor) { return tensor.rows(part.at, part.at + part.count); };
  const auto all = [&](const Tensor& tensor) { return tensor.rows(part.begin, part.begin + part.count); };
  const Tensor rounded = all(weights());
  run(model_.context, AdamW{.parameter = held(exact_),
                            .gradient = all(gradient_.flat()),
                            .first_moment = held(first_moment_),
                            .second_moment = held(second_moment_),
                            .rounded = rounded.raw() == held(exact_).raw() ? Tensor() : rounded,
                            .learning_rate = static_cast<float>(learning_rate),
                            .weight_decay = static_cast<float>(weight_decay),
                            .gradient_scale = static_cast<float>(gradient_scale),
                            .step = updates_});
}

void Optimizer::update(double learning_rate, double gradient_scale) {
  ++updates_;
  for (const HeldNumbers& part : held_) {
    if (trained_.adapter != nullptr || weight_decay_ == 0.0) {
      update_part(part, weight_decay_, learning_rate, gradient_scale);
      continue;
    }
    // Tensor by tensor: some decay, some do not.
    const auto* const first = gradient_.flat().data<float>();
    for (const ShardedTensor& tensor : gradient().tensors()) {
      const int64_t place = tensor.local.data<float>() - first;
      const int64_t begin = std::max(place, part.begin);
      const int64_t end = std::min(place + tensor.local.size(), part.begin + part.count);
      if (begin >= end) continue;
      update_part({begin, part.at + begin - part.begin, end - begin},
                  tensor.local.rank() == 2 ? weight_decay_ : 0.0, learning_rate, gradient_scale);
    }
  }
  gather(weights());
}

std::vector<Optimizer::HeldTensor> Optimizer::held_tensors(bool once) const {
  std::vector<HeldTensor> all;
  const auto* const first = gradient_.flat().data<float>();
  for (const HeldNumbers& part : held_) {
    if (once && !stands_for(part)) continue;
    for (const ShardedTensor& tensor : gradient().tensors()) {
      if (once && !stands_for(tensor)) continue;
      const int64_t place = tensor.local.data<float>() - first;
      const int64_t begin = std::max(place, part.begin);
      const int64_t end = std::min(place + tensor.local.size(), part.begin + part.count);
      if (begin < end) all.push_back({&tensor, begin - place, part.at + begin - part.begin, end - begin});
    }
  }
  return all;
}

void Optimizer::collect() {
  const Tensor place = flat_of(trained_);
  if (share_ == 0 || place.raw() == weights().raw()) return;
  const FormOf form(model_, trained_, Device::cpu, "trained");
  const Tensor all = form.flat();
  for (const HeldNumbers& held : held_) {
    copy_floats(model_.context, exact_.rows(held.at, held.at + held.count),
                all.rows(held.begin, held.begin + held.count));
  }
  gather(all);
  copy_floats(model_.context, all, place);
}

}  // namespace sl
