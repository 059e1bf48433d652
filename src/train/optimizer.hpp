// AdamW over whatever is trained, with its gradient and moments (f32), and the norm of the gradient over
// tensor-parallel ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/tensor.hpp"
#include "model/training_pass.hpp"
#include "model/transformer.hpp"

namespace sl {

class Optimizer {
 public:
  // Takes the memory of gradient and moments, all zeros. `trained` and the model outlive it. Weight decay
  // leaves out norms and biases.
  Optimizer(const Transformer& model, const Trainable& trained, double weight_decay);

  const Trainable& trained() const { return trained_; }
  Trainable gradient() const { return gradient_.view(); }
  Trainable first_moment() const { return first_moment_.view(); }
  Trainable second_moment() const { return second_moment_.view(); }

  void zero_gradient();
  // Sums the gradient over the group, in buckets.
  void reduce_gradient(Communicator& data_parallel);
  // Euclidean norm of the whole gradient, every number of the model counted once; collective over the
  // tensor-parallel group. After TrainingPass::finish_gradients and reduce_gradient.
  double gradient_norm() const;
  // One step of AdamW on gradient_scale * gradient.
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

  Transformer model_;
  Trainable trained_;
  double weight_decay_;
  Owned gradient_, first_moment_, second_moment_;
  int64_t updates_ = 0;
};

}  // namespace sl
