// AdamW over whatever is trained, with its gradient, and the norm of the gradient over tensor-parallel ranks.
// What is trained, gradient and moments are f32; where the model is stored as bf16, it computes with a
// rounded copy of what is trained.
//
// Replicas that train all weights share the optimizer's state out (ZeRO-1, Rajbhandari et al. 2020): each
// keeps exact weights and moments of a range of the flat numbers only, updates them, and gathers the weights
// of the others. A rank then holds its weights in the storage dtype, a whole f32 gradient, and 12 bytes a
// weight divided by the replicas. The numbers are those of one replica that holds everything.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/buffer.hpp"
#include "core/tensor.hpp"
#include "dist/communicator.hpp"
#include "model/training_pass.hpp"
#include "model/transformer.hpp"
#include "train/optimizer_layout.hpp"

namespace sl {

// f32 numbers of the form of what is trained: a gradient, or a part of the optimizer's state.
class FormOf {
 public:
  FormOf(const Transformer& model, const Trainable& trained, Device device, const char* name);
  Trainable view() const { return {adapter_.get(), parameters_.get()}; }
  Tensor flat() const;

 private:
  std::unique_ptr<Adapter> adapter_;
  std::unique_ptr<Parameters> parameters_;
};

class Optimizer {
 public:
  // Takes the memory of gradient and state. `trained` is f32; it, the model and the group outlive this. With
  // full fine-tuning it is the model's own weights, or an f32 form of them: that must be where the model is
  // stored as bf16, and lie on the device unless several replicas share the state, which then read it here
  // and write it in collect() only. Weight decay leaves out norms and biases. Collective over
  // `data_parallel`.
  Optimizer(const Transformer& model, const Trainable& trained, double weight_decay,
            Communicator& data_parallel);

  Trainable gradient() const { return gradient_.view(); }
  // What a training pass computes with: the adapter trained, or its rounded copy; null with full fine-tuning.
  const Adapter* adapter() const { return rounded_ ? &*rounded_ : trained_.adapter; }

  void zero_gradient();
  // The gradient of this layer and of those after it is whole on this replica: what is complete of it may be
  // summed over the data-parallel group while the backward pass goes on. Replicas need not say so for the
  // same layers, or at all.
  void layer_complete(int64_t layer);
  // Sums what is left of the gradient over the data-parallel group. Where replicas share the state, each has
  // the sum of its share only. After TrainingPass::finish_gradients.
  void reduce_gradient();
  // Euclidean norm of the whole gradient, every number of the model counted once; collective over both
  // groups. After reduce_gradient.
  double gradient_norm() const;
  // One step of AdamW on gradient_scale * gradient, what the model computes with included. Collective over
  // the data-parallel group.
  void update(double learning_rate, double gradient_scale);

  int64_t updates() const { return updates_; }
  void set_updates(int64_t updates) { updates_ = updates; }  // when continuing

  // What is held here of the state: three flat tensors on the device, laid out alike.
  enum class Part : uint8_t { parameter, first_moment, second_moment };
  const Tensor& state(Part part) const;
  // Numbers `from` .. from + count of a local tensor lie at `at` in them.
  struct HeldTensor {
    const ShardedTensor* tensor;  // of gradient(): lives as long as this
    int64_t from, at, count;
  };
  // Of all tensors that are held here; with `once`, those for which this rank stands: over all ranks they are
  // the whole state, every number once.
  std::vector<HeldTensor> held_tensors(bool once) const;
  // What the model computes with becomes what the state says. Collective over the data-parallel group; after
  // state() was written.
  void publish();
  // Brings what has been learnt to where `trained` is. Collective over the data-parallel group.
  void collect();

 private:
  void send_buckets(size_t count);

  bool stands_for(const HeldNumbers& part) const;
  bool stands_for(const ShardedTensor& tensor) const;
  Tensor weights() const;  // flat: what the model computes with
  void update_part(const HeldNumbers& part, double weight_decay, double learning_rate, double gradient_scale);
  void gather(const Tensor& all) const;

  Transformer model_;
  Trainable trained_;
  std::optional<Adapter> rounded_;  // of the storage dtype, where that is not f32
  double weight_decay_;
  Communicator* data_parallel_;
  FormOf gradient_;
  int64_t share_ = 0;  // numbers that each replica holds alone; 0: every replica holds all
  std::vector<HeldNumbers> held_;
  BucketPlan plan_;
  size_t sent_ = 0;      // buckets of this step
  Buffer exact_buffer_;  // of a share
  Buffer moments_buffer_;
  Tensor exact_, first_moment_, second_moment_;  // f32, as held_ says
  int64_t updates_ = 0;
};

}  // namespace sl
