#include "train/optimizer.hpp"

#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "kernels/ops.hpp"

namespace sl {
namespace {

constexpr int64_t bucket_elements = int64_t{4} << 20;

// All the numbers held here, in the same layout for every Trainable of one form.
Tensor flat(const Trainable& trainable) {
  return trainable.adapter != nullptr ? trainable.adapter->flat() : trainable.parameters->flat();
}

}  // namespace

Optimizer::Owned::Owned(const Transformer& model, const Trainable& form, const char* name) {
  const Device device = model.context.device;
  if (form.adapter != nullptr) {
    adapter_ = std::make_unique<Adapter>(*model.config, *model.shard, form.adapter->shape(), device, name);
  } else {
    parameters_ = std::make_unique<Parameters>(*model.config, *model.shard, device, name);
  }
}

Optimizer::Optimizer(const Transformer& model, const Trainable& trained, double weight_decay)
    : model_(model),
      trained_(trained),
      weight_decay_(weight_decay),
      gradient_(model, trained, "gradients"),
      first_moment_(model, trained, "optimizer"),
      second_moment_(model, trained, "optimizer") {
  require((trained.adapter == nullptr) != (trained.parameters == nullptr),
          "either an adapter or all weights are trained");
  require(flat(trained).dtype() == DType::f32, "what is trained is not f32");
  const bool same_dtype = model.context.storage == DType::f32;
  require(trained.adapter != nullptr || (trained.parameters == model.parameters) == same_dtype,
          "full fine-tuning trains the model's own weights in f32, or an f32 form of others");
  if (trained.adapter != nullptr && !same_dtype) {
    rounded_.emplace(*model.config, *model.shard, trained.adapter->shape(), model.context.storage_place(),
                     "adapter");
  }
  refresh();
}

const std::vector<ShardedTensor>& Optimizer::rounded_tensors() const {
  return rounded_ ? rounded_->tensors() : model_.parameters->tensors();
}

void Optimizer::refresh() {
  if (model_.context.storage == DType::f32) return;
  const std::vector<ShardedTensor>& exact = trained_.tensors();
  for (size_t i = 0; i < exact.size(); ++i)
    run(model_.context, Copy{exact[i].local, rounded_tensors()[i].local});
}

void Optimizer::zero_gradient() { run(model_.context, Fill{flat(gradient()), 0.0F}); }

void Optimizer::reduce_gradient(Communicator& data_parallel) {
  if (data_parallel.size() == 1) return;
  const Tensor all = flat(gradient());
  for (int64_t begin = 0; begin < all.size(); begin += bucket_elements) {
    data_parallel.all_reduce_sum(all.rows(begin, std::min(begin + bucket_elements, all.size())));
  }
}

double Optimizer::gradient_norm() const {
  double squares = 0.0;
  const auto add = [&](const Tensor& tensor) {
    run(model_.context, SumOfSquares{.x = tensor, .result = &squares});
  };
  if (model_.shard->tp == 1) {
    add(flat(gradient()));
    return std::sqrt(squares);
  }
  const int rank = model_.shard->tp_rank;
  for (const ShardedTensor& tensor : gradient().tensors()) {
    const bool replicated = tensor.axis == ShardedTensor::Axis::replicated;
    if (replicated ? rank == 0 : rank % tensor.copies == 0) add(tensor.local);
  }
  model_.tensor_parallel->all_reduce_sum(std::span(&squares, 1));
  return std::sqrt(squares);
}

void Optimizer::update(double learning_rate, double gradient_scale) {
  ++updates_;
  const auto update_part = [&](const Tensor& parameter, const Tensor& gradient_part, const Tensor& first,
                               const Tensor& second, const Tensor& rounded, double weight_decay) {
    run(model_.context, AdamW{.parameter = parameter,
                              .gradient = gradient_part,
                              .first_moment = first,
                              .second_moment = second,
                              .rounded = rounded,
                              .learning_rate = static_cast<float>(learning_rate),
                              .weight_decay = static_cast<float>(weight_decay),
                              .gradient_scale = static_cast<float>(gradient_scale),
                              .step = updates_});
  };
  const bool rounds = model_.context.storage != DType::f32;
  Tensor rounded;
  if (rounds) rounded = rounded_ ? rounded_->flat() : model_.parameters->flat();
  // The paddings between tensors depend on the dtype, unless all sizes are multiples of what is padded to.
  const bool same_layout = !rounds || rounded.size() == flat(trained_).size();
  if (same_layout && (trained_.adapter != nullptr || weight_decay_ == 0.0)) {
    return update_part(flat(trained_), flat(gradient()), flat(first_moment()), flat(second_moment()), rounded,
                       weight_decay_);
  }
  for (size_t i = 0; i < trained_.tensors().size(); ++i) {
    const Tensor parameter = trained_.tensors()[i].local;
    const bool decays = trained_.adapter != nullptr || parameter.rank() == 2;
    update_part(parameter, gradient().tensors()[i].local, first_moment().tensors()[i].local,
                second_moment().tensors()[i].local, rounds ? rounded_tensors()[i].local : Tensor(),
                decays ? weight_decay_ : 0.0);
  }
}

}  // namespace sl
