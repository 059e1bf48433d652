// Supervised fine-tuning of an adapter or of all weights on rows of tokens, data-parallel over replicas, each
// of them tensor-parallel. Stepped from outside, so that the caller looks after stop signals, metrics and
// checkpoints between steps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/communicator.hpp"
#include "model/training_pass.hpp"
#include "train/optimizer.hpp"
#include "train/packing.hpp"

namespace sl {

enum class Finetune : uint8_t { lora, full };

struct TrainingOptions {
  Finetune finetune = Finetune::lora;
  LoraShape lora;  // for whoever makes the adapter
  int64_t epochs = 4;
  double learning_rate = 1e-4;
  double warmup_ratio = 0.1;
  double weight_decay = 0.0;
  double max_grad_norm = 1.0;   // the gradient is scaled down to this norm; 0: never
  int64_t cutoff = 16384;       // tokens of a sequence that are used
  int64_t batch_sequences = 0;  // of a step, over all replicas; 0: one a replica
  int64_t pass_tokens = 0;      // sequences are packed into passes of so many; 0: as the longest sequence
  uint64_t seed = 1;            // of the order of the rows
  bool shuffle = true;          // false: the order given, in every epoch
  Recompute recompute = Recompute::automatic;
  int64_t activation_bytes = 0;   // memory of a training pass, at most; 0: any, on a GPU what is free
  int64_t checkpoint_every = 50;  // steps, for whoever steps; 0: only at the end
};

struct StepRecord {
  int64_t step = 0;            // from 1
  int64_t epoch = 0;           // from 1
  double loss = 0.0;           // mean over the learnt tokens of the step, all replicas
  double learning_rate = 0.0;  // used in this step
  double grad_norm = 0.0;      // before it is scaled down
  int64_t tokens = 0;          // put through the model, all replicas
  double tokens_per_second = 0.0;
  double tflops = 0.0;   // of a rank: operations of training_flops()
  bool skipped = false;  // loss or gradient not finite: nothing was learnt
};

// Where a training stands; with the trained tensors and the moments all that continuing needs.
struct TrainerState {
  int64_t step = 0;     // steps done
  int64_t updates = 0;  // of them, updates of the optimizer
  int64_t skipped = 0;  // of them, steps skipped
  int64_t skipped_in_a_row = 0;
  int64_t batch_sequences = 0;  // resolved
  uint64_t fingerprint = 0;     // of rows and of the options that change what is learnt
};

class Trainer {
 public:
  // Every rank gives the same rows and options. `trained` (f32) starts where its owner has brought it; with
  // full fine-tuning it is the model's own weights, or an f32 form of them where the model is stored as bf16
  // (Optimizer says where it lies). All of them outlive the trainer. InputError when no token is to be
  // learnt, a token is outside the vocabulary, or the activations do not fit.
  Trainer(const Transformer& model, const Trainable& trained, std::vector<TrainingRow> rows,
          const TrainingOptions& options, Communicator& data_parallel);

  // Takes one step; false (and nothing done) when all have been taken. Collective over all ranks. InputError
  // when ten steps in a row had a loss or a gradient that is not finite.
  bool step();
  const StepRecord& last() const { return last_; }  // of the last step
  int64_t total_steps() const { return total_steps_; }
  const TrainerState& state() const { return state_; }
  const TrainingPass& pass() const { return pass_; }

  // Brings what has been learnt to `trained`. Collective over all ranks; before it is read at the end.
  void collect() { optimizer_.collect(); }

  // What continuing needs (training_checkpoint.hpp saves it).
  const Optimizer& optimizer() const { return optimizer_; }
  const Context& context() const { return model_.context; }
  // Continues from such a file, which may be that of another grid; every rank reads what it holds. Collective
  // over all ranks. InputError when it belongs to other rows, options or shapes, or is damaged.
  void load_checkpoint(const std::string& path);

 private:
  int64_t steps_an_epoch() const;
  const std::vector<int64_t>& order_of(int64_t epoch);
  void finish_step(double loss);

  Transformer model_;
  std::vector<TrainingRow> rows_;
  TrainingOptions options_;
  Communicator* data_parallel_;
  Optimizer optimizer_;
  int64_t pass_tokens_;
  TrainingPass pass_;
  TrainerState state_;
  int64_t total_steps_ = 0;
  StepRecord last_;
  std::vector<int64_t> order_;
  int64_t order_epoch_ = -1;
};

}  // namespace sl
