// Small random models for the tests of training, the same whatever the sharding.
#pragma once

#include <string>
#include <vector>

#include "core/rng.hpp"
#include "dist/communicator_mpi.hpp"
#include "model/served_adapters.hpp"
#include "model/training_pass.hpp"
#include "tests/support.hpp"
#include "train/packing.hpp"
#include "train/training_checkpoint.hpp"

namespace sl::tiny {

// Two layers; heads and widths that 2 and 4 tensor-parallel ranks divide, with 2 key-value heads, which 4
// ranks share.
inline ModelConfig config(bool qwen2, bool tied) {
  ModelConfig c;
  c.architecture = qwen2 ? Architecture::qwen2 : Architecture::llama;
  c.vocabulary = 37;
  c.hidden = 16;
  c.ffn = 24;
  c.layers = 2;
  c.heads = 4;
  c.key_heads = 2;
  c.head_dim = 4;
  c.max_positions = 64;
  c.tied = tied;
  c.qkv_bias = qwen2;
  return c;
}

inline void fill(const std::vector<ShardedTensor>& tensors, uint64_t seed, double norm_center) {
  int64_t index = 0;
  for (const ShardedTensor& tensor : tensors) {
    Random random({.seed = seed, .sample = index++});
    int64_t size = 1;
    for (const int64_t dim : tensor.shape) size *= dim;
    const bool norm = tensor.name.find("norm") != std::string::npos;
    std::vector<float> whole(static_cast<size_t>(size));
    for (float& value : whole) {
      value = static_cast<float>((norm ? norm_center : 0.0) + 0.8 * (random.uniform() - 0.5));
    }
    scatter_whole(tensor, whole);
  }
}

// A model with its parts in one place; not movable, since `transformer` points into it.
struct Model {
  // `room`: for an adapter; without it all weights may be trained.
  Model(const ModelConfig& c, Communicator& tensor_parallel, bool room, Device on = Device::cpu)
      : device(on),
        config(c),
        shard(config, tensor_parallel.size(), tensor_parallel.rank()),
        parameters(config, shard, device, "weights", room ? ServedAdapters::room_for(std::vector{lora}) : 0),
        transformer{{.device = device}, &config, &shard, &parameters, &tensor_parallel} {
    fill(parameters.tensors(), 7, 1.0);
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  Adapter adapter(uint64_t seed) const {
    Adapter made(config, shard, lora, device, "adapter");
    fill(made.tensors(), seed, 0.0);
    return made;
  }
  Adapter zero_adapter() const { return {config, shard, lora, device, "gradient"}; }

  static constexpr LoraShape lora{.rank = 3, .alpha = 6.0F};
  Device device;
  ModelConfig config;
  Shard shard;
  Parameters parameters;
  Transformer transformer;
};

// `count` rows of varied lengths; about two thirds of the tokens are learnt.
inline std::vector<TrainingRow> rows(int64_t count, int64_t vocabulary, uint64_t seed) {
  std::vector<TrainingRow> all(static_cast<size_t>(count));
  Random random({.seed = seed});
  for (TrainingRow& row : all) {
    const int64_t tokens = 3 + random.below(9);
    for (int64_t t = 0; t < tokens; ++t) {
      row.tokens.push_back(static_cast<int32_t>(random.below(vocabulary)));
      row.mask.push_back(t >= tokens / 3 ? 1 : 0);
    }
  }
  return all;
}

// All of them in one batch.
inline PackedBatch batch(const std::vector<TrainingRow>& all) {
  std::vector<int64_t> chosen;
  for (size_t i = 0; i < all.size(); ++i) chosen.push_back(static_cast<int64_t>(i));
  PackedBatch packed = pack(all, chosen, 1000, 1000, 1.0F).front();
  for (size_t i = 0; i < packed.weights.size(); ++i)
    packed.weights[i] *= 0.5F + 0.1F * static_cast<float>(i % 7);
  return packed;
}

inline constexpr int64_t plenty = int64_t{1} << 30;

// Saves, and waits until it is durable; collective over all ranks of the training.
inline void save_checkpoint(Trainer& trainer, const std::string& path, Communicator& world) {
  TrainingCheckpoint(trainer, path, world).finish();
}

}  // namespace sl::tiny
