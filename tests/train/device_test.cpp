// Training on a GPU against training on the host, with f32 and with bf16 storage; what a GPU run promises
// about its own bits.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "kernels/ops.hpp"
#include "tests/kernels/on_devices.hpp"
#include "tests/train/placed.hpp"

namespace sl {
namespace {

using namespace placed;

std::vector<float> numbers_of(const Trainable& trainable) {
  std::vector<float> all;
  for (const ShardedTensor& tensor : trainable.tensors()) {
    const std::vector<float> part = download_floats(tensor.local);
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

class TrainingOnDevices : public test::OnDevices {
 protected:
  std::unique_ptr<Communicator> alone_ = make_local_communicator();
};

TEST_P(TrainingOnDevices, GradientsAreThoseOfTheHost) {
  for (const bool qwen2 : {false, true}) {
    for (const bool lora : {true, false}) {
      const std::vector<TrainingRow> rows = long_rows(6, 3);
      const PackedBatch batch = tiny::batch(rows);
      std::vector<std::vector<float>> gradients;
      std::vector<double> losses;
      for (const Context& where : {Context{}, context()}) {
        Placed placed(where, small_config(qwen2), *alone_, lora);
        Optimizer optimizer(placed.transformer, placed.trained(lora), 0.0, *alone_);
        TrainingPass pass(placed.transformer, {.max_rows = batch.rows(), .lora_rank = lora ? 8 : 0},
                          tiny::plenty);
        losses.push_back(pass.forward_backward(batch, optimizer.adapter(), optimizer.gradient()).loss_sum);
        gradients.push_back(numbers_of(optimizer.gradient()));
      }
      const bool rounded = storage() == DType::bf16;
      EXPECT_NEAR(losses[1], losses[0], (rounded ? 2e-3 : 1e-5) * losses[0]);
      EXPECT_LE(test::relative_error(gradients[1], gradients[0]), rounded ? 2e-2 : 1e-4)
          << (qwen2 ? "qwen2 " : "llama ") << (lora ? "lora" : "full");
    }
  }
}

TEST_P(TrainingOnDevices, FollowsTheHost) {
  for (const bool lora : {true, false}) {
    std::vector<std::vector<double>> losses;
    for (const Context& where : {Context{}, context()}) {
      Placed placed(where, small_config(false), *alone_, lora);
      Trainer trainer(placed.transformer, placed.trained(lora), long_rows(24, 4), options_of(lora), *alone_);
      losses.emplace_back();
      while (trainer.step()) losses.back().push_back(trainer.last().loss);
    }
    ASSERT_EQ(losses[0].size(), 12U);
    EXPECT_LT(losses[0].back(), losses[0].front());
    for (size_t i = 0; i < losses[0].size(); ++i)
      EXPECT_NEAR(losses[1][i], losses[0][i], (storage() == DType::bf16 ? 1e-2 : 1e-4) * losses[0][i]) << i;
  }
}

TEST_P(TrainingOnDevices, DoesNotDependOnWhatIsComputedAgainNorOnAStop) {
  const std::string checkpoint =
      std::filesystem::temp_directory_path() / ("selflengthen_device_" + test::name_of(place()) + ".h5");
  for (const bool lora : {true, false}) {
    std::vector<std::vector<float>> results;
    for (const Recompute recompute : {Recompute::none, Recompute::all}) {
      Placed placed(context(), small_config(true), *alone_, lora);
      TrainingOptions options = options_of(lora);
      options.recompute = recompute;
      Trainer trainer(placed.transformer, placed.trained(lora), long_rows(24, 4), options, *alone_);
      for (int i = 0; i < 5; ++i) trainer.step();
      if (recompute == Recompute::none) tiny::save_checkpoint(trainer, checkpoint, *alone_);
      for (int i = 0; i < 5; ++i) trainer.step();
      results.push_back(numbers_of(placed.trained(lora)));
    }
    Placed placed(context(), small_config(true), *alone_, lora);
    Trainer trainer(placed.transformer, placed.trained(lora), long_rows(24, 4), options_of(lora), *alone_);
    trainer.load_checkpoint(checkpoint);
    for (int i = 0; i < 5; ++i) trainer.step();
    results.push_back(numbers_of(placed.trained(lora)));
    EXPECT_EQ(results[1], results[0]) << "computed again";
    EXPECT_EQ(results[2], results[0]) << "after a stop";
    EXPECT_TRUE(std::isfinite(results[0].front()));
  }
  remove_checkpoint(checkpoint);
}

using test::name_of;
using test::places;
SL_ON_DEVICES(TrainingOnDevices);

}  // namespace
}  // namespace sl
