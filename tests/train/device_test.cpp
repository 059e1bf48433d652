// Training on a GPU against training on the host, with f32 and with bf16 storage; what a GPU run promises
// about its own bits.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "kernels/ops.hpp"
#include "tests/kernels/on_devices.hpp"
#include "tests/train/tiny.hpp"
#include "train/trainer.hpp"

namespace sl {
namespace {

// Wide enough for the kernels of a GPU: three query heads a key-value head, packed sequences of many tiles.
ModelConfig small_config(bool qwen2) {
  ModelConfig c;
  c.architecture = qwen2 ? Architecture::qwen2 : Architecture::llama;
  c.vocabulary = 523;
  c.hidden = 192;
  c.ffn = 320;
  c.layers = 3;
  c.heads = qwen2 ? 3 : 6;
  c.key_heads = qwen2 ? 1 : 2;
  c.head_dim = qwen2 ? 128 : 64;
  c.max_positions = 512;
  c.tied = !qwen2;
  c.qkv_bias = qwen2;
  return c;
}

std::vector<TrainingRow> long_rows(int64_t count, uint64_t seed) {
  std::vector<TrainingRow> rows(static_cast<size_t>(count));
  Random random({.seed = seed});
  for (TrainingRow& row : rows) {
    const int64_t tokens = 20 + random.below(180);
    int64_t token = random.below(523);
    for (int64_t t = 0; t < tokens; ++t) {
      // Something to learn: mostly a fixed successor.
      token = random.uniform() < 0.7 ? (token * 7 + 3) % 523 : random.below(523);
      row.tokens.push_back(static_cast<int32_t>(token));
      row.mask.push_back(t >= tokens / 4 ? 1 : 0);
    }
  }
  return rows;
}

// Weights of the scale of a trained model, the same on every device.
void fill_weights(const std::vector<ShardedTensor>& tensors) {
  int64_t index = 0;
  for (const ShardedTensor& tensor : tensors) {
    Random random({.seed = 17, .sample = index++});
    const bool norm = tensor.name.find("norm") != std::string::npos;
    const double width = norm ? 0.2 : 2.0 / std::sqrt(static_cast<double>(tensor.shape.back()));
    std::vector<float> whole(static_cast<size_t>(tensor.local.size()));
    for (float& value : whole) {
      const double drawn = (norm ? 1.0 : 0.0) + width * (random.uniform() - 0.5);
      value = static_cast<float>(Bf16(static_cast<float>(drawn)));  // exact in both dtypes
    }
    scatter_whole(tensor, whole);
  }
}

struct Placed {
  Placed(const Context& context, const ModelConfig& c, Communicator& alone)
      : config(c),
        shard(config, 1, 0),
        parameters(config, shard, context.storage_place(), "weights"),
        exact(config, shard, context.device, "trained weights"),
        adapter(config, shard, LoraShape{}, context.device, "adapter"),
        transformer{context, &config, &shard, &parameters, &alone} {
    fill_weights(parameters.tensors());
    fill_weights(exact.tensors());
    initialise(adapter, 5);
    // A fresh adapter has B = 0, and so no gradient of A.
    int64_t index = 0;
    for (const ShardedTensor& tensor : adapter.tensors()) {
      Random random({.seed = 29, .sample = index++});
      if (!tensor.name.ends_with("lora_B.weight")) continue;
      std::vector<float> whole(static_cast<size_t>(tensor.local.size()));
      for (float& value : whole) value = static_cast<float>(0.1 * (random.uniform() - 0.5));
      scatter_whole(tensor, whole);
    }
  }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;

  Trainable trained(bool lora) {
    if (lora) return {.adapter = &adapter};
    return {.parameters = transformer.context.storage == DType::f32 ? &parameters : &exact};
  }

  ModelConfig config;
  Shard shard;
  Parameters parameters, exact;
  Adapter adapter;
  Transformer transformer;
};

TrainingOptions options_of(bool lora) {
  TrainingOptions options;
  options.finetune = lora ? Finetune::lora : Finetune::full;
  options.batch_sequences = 6;
  options.pass_tokens = 400;
  options.epochs = 3;
  options.learning_rate = lora ? 1e-3 : 1e-4;
  return options;
}

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
        Placed placed(where, small_config(qwen2), *alone_);
        Optimizer optimizer(placed.transformer, placed.trained(lora), 0.0);
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
      Placed placed(where, small_config(false), *alone_);
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
      Placed placed(context(), small_config(true), *alone_);
      TrainingOptions options = options_of(lora);
      options.recompute = recompute;
      Trainer trainer(placed.transformer, placed.trained(lora), long_rows(24, 4), options, *alone_);
      for (int i = 0; i < 5; ++i) trainer.step();
      if (recompute == Recompute::none) trainer.save_checkpoint(checkpoint, true);
      for (int i = 0; i < 5; ++i) trainer.step();
      results.push_back(numbers_of(placed.trained(lora)));
    }
    Placed placed(context(), small_config(true), *alone_);
    Trainer trainer(placed.transformer, placed.trained(lora), long_rows(24, 4), options_of(lora), *alone_);
    trainer.load_checkpoint(checkpoint);
    for (int i = 0; i < 5; ++i) trainer.step();
    results.push_back(numbers_of(placed.trained(lora)));
    EXPECT_EQ(results[1], results[0]) << "computed again";
    EXPECT_EQ(results[2], results[0]) << "after a stop";
    EXPECT_TRUE(std::isfinite(results[0].front()));
  }
  std::filesystem::remove(checkpoint);
}

using test::name_of;
using test::places;
SL_ON_DEVICES(TrainingOnDevices);

}  // namespace
}  // namespace sl
