// Checkpoints of a training while it goes on. save() copies the numbers that this rank stands for into host
// memory, and a thread of the rank drains them into its part; poll(), after every step, finds out without
// waiting whether all ranks' parts are durable, and then rank 0 writes the index, which makes the checkpoint
// and takes the place of the one before. Killed at any instant, there is the one before or the new one.
#pragma once

#include <string>
#include <vector>

#include "dist/communicator.hpp"
#include "io/checkpoint_writer.hpp"
#include "train/trainer.hpp"

namespace sl {

// Everything here is collective over `world`, all ranks of the training.
class TrainingCheckpoint {
 public:
  // At `path` is the index; the parts are beside it. Takes the memory of the copy. Trainer and group outlive
  // this.
  TrainingCheckpoint(Trainer& trainer, std::string path, Communicator& world);

  // Continues from the checkpoint at `path` where there is a whole one; a damaged one is removed with a
  // warning: its steps are taken again with the same result. InputError as Trainer::load_checkpoint.
  bool resume();
  // Copies, and begins to drain. While the one before still drains nothing is done but to count it: training
  // does not wait for a slow file system.
  void save();
  // Whether nothing is draining any more. SystemError on the rank whose part could not be written.
  bool poll();
  // Saves the present state if that is not done yet, and waits until it is durable.
  void finish();
  // No checkpoint is left, nor one under way: the training is over.
  void remove();

  int64_t skipped() const { return skipped_; }       // calls of save() that found one draining
  double stall() const { return stall_; }            // seconds of the last copy, on this rank
  int64_t bytes() const { return writer_.bytes(); }  // of this rank's part

 private:
  bool commit(double seconds);

  Trainer& trainer_;
  std::string path_;
  Communicator& world_;
  CheckpointWriter writer_;
  CheckpointIndex index_;  // of the one that drains
  int64_t saved_step_ = -1, draining_step_ = -1;
  int64_t skipped_ = 0;
  double stall_ = 0.0;
};

}  // namespace sl
