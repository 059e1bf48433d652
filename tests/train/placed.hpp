// A small random model on any device, for the tests of training there.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "tests/train/tiny.hpp"
#include "train/trainer.hpp"

namespace sl::placed {

// Wide enough for the kernels of a GPU: three query heads a key-value head, packed sequences of many tiles.
inline ModelConfig small_config(bool qwen2) {
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

inline std::vector<TrainingRow> long_rows(int64_t count, uint64_t seed) {
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

// Room for the whole tensor, whatever the sharding.
inline std::vector<float> whole_of(const ShardedTensor& tensor) {
  int64_t size = 1;
  for (const int64_t dim : tensor.shape) size *= dim;
  return std::vector<float>(static_cast<size_t>(size));
}

// Weights of the scale of a trained model, the same on every device.
inline void fill_weights(const std::vector<ShardedTensor>& tensors) {
  int64_t index = 0;
  for (const ShardedTensor& tensor : tensors) {
    Random random({.seed = 17, .sample = index++});
    const bool norm = tensor.name.find("norm") != std::string::npos;
    const double width = norm ? 0.2 : 2.0 / std::sqrt(static_cast<double>(tensor.shape.back()));
    std::vector<float> whole = whole_of(tensor);
    for (float& value : whole) {
      const double drawn = (norm ? 1.0 : 0.0) + width * (random.uniform() - 0.5);
      value = static_cast<float>(Bf16(static_cast<float>(drawn)));  // exact in both dtypes
    }
    scatter_whole(tensor, whole);
  }
}

struct Placed {
  // `lora`: there is room for an adapter; else all weights may be trained.
  Placed(const Context& context, const ModelConfig& c, Communicator& tensor_parallel, bool lora)
      : config(c),
        shard(config, tensor_parallel.size(), tensor_parallel.rank()),
        parameters(config, shard, context.storage_place(), "weights",
                   lora ? ServedAdapters::room_for(std::vector<LoraShape>(1)) : 0),
        exact(config, shard, context.device, "trained weights"),
        adapter(config, shard, LoraShape{}, context.device, "adapter"),
        transformer{context, &config, &shard, &parameters, &tensor_parallel} {
    fill_weights(parameters.tensors());
    fill_weights(exact.tensors());
    initialise(adapter, 5);
    // A fresh adapter has B = 0, and so no gradient of A.
    int64_t index = 0;
    for (const ShardedTensor& tensor : adapter.tensors()) {
      Random random({.seed = 29, .sample = index++});
      if (!tensor.name.ends_with("lora_B.weight")) continue;
      std::vector<float> whole = whole_of(tensor);
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

inline TrainingOptions options_of(bool lora) {
  TrainingOptions options;
  options.finetune = lora ? Finetune::lora : Finetune::full;
  options.batch_sequences = 6;
  options.pass_tokens = 400;
  options.epochs = 3;
  options.learning_rate = lora ? 1e-3 : 1e-4;
  return options;
}

}  // namespace sl::placed
