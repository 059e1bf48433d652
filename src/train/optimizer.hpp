// AdamW over whatever is trained, with its gradient and moments, and the norm of the gradient over
// tensor-parallel ranks. What is trained, gradient and moments are f32; where the model is stored as bf16, it
// computes with a rounded copy of what is trained.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/tensor.hpp"
#include "model/training_pass.hpp"
#include "model/transformer.hpp"

namespace sl {

class Optimizer {
 public:
  // Takes the memory of gradient and moments, all zeros. `trained` is f32; it and the model outlive this.
  // With full fine-tuning the model's own weights are what is trained, or its rounded copy. Weight decay
  // leaves out norms and biases.
  Optimizer(const Transformer& model, const Trainable& trained, double weight_decay);

  const Trainable& trained() const { return trained_; }
  Trainable gradient() const { return gradient_.view(); }
  Trainable first_moment() const { return first_moment_.view(); }
  Trainable second_moment() const { return second_moment_.view(); }

  // What a training pass computes with: the adapter trained, or its rounded copy; null with full fine-tuning.
  const Adapter* adapter() const { return rounded_ ? &*rounded_ : trained_.adapter; }
  // Rounds what is trained into the copy: after every change of it from outside.
  void refresh();

  void zero_gradient();
  // Sums the gradient over the group, in buckets.
  void reduce_gradient(Communicator& data_parallel);
  // Euclidean norm of the whole gradient, every number of the model counted once; collective over the
  // tensor-parallel group. After TrainingPass::finish_gradients and reduce_gradient.
  double gradient_norm() const;
  // One step of AdamW on gradient_scale * gradient, the rounded copy included.
  void update(double learning_rate, double gradient_scale);

  int64_t updates() const { return updates_; }
  void set_updates(int64_t updates) { updates_ = updates; }  // when continuing

 private:
  // A gradient or a moment of the form of what is trained.
  class Owned {
   public:
    Owned(const Transformer& model, const Trainable& form, const char* name);
    Trainable view() const { return {adapter_.get(), parameters_.get()}; }

   private:
    std::unique_ptr<Adapter> adapter_;
    std::unique_ptr<Parameters> parameters_;
  };

  const std::vector<ShardedTensor>& rounded_tensors() const;

  Transformer model_;
  Trainable trained_;
  std::optional<Adapter> rounded_;  // of the storage dtype, where that is not f32
  double weight_decay_;
  Owned gradient_, first_moment_, second_moment_;
  int64_t updates_ = 0;
};

}  // namespace sl
