// LoRA adapters (Hu et al. 2021) on the seven projections of every block, in PEFT's file format.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/parameters.hpp"

namespace sl {

enum class Projection : uint8_t { q, k, v, o, gate, up, down };
constexpr std::array<Projection, 7> all_projections = {Projection::q,   Projection::k,    Projection::v,
                                                       Projection::o,   Projection::gate, Projection::up,
                                                       Projection::down};
// Projections of the same input, whose A stand behind each other.
using ProjectionGroup = std::span<const Projection>;
constexpr ProjectionGroup qkv_group{all_projections.data(), 3};
constexpr ProjectionGroup output_group{all_projections.data() + 3, 1};
constexpr ProjectionGroup gate_up_group{all_projections.data() + 4, 2};
constexpr ProjectionGroup down_group{all_projections.data() + 6, 1};

std::string_view module_name(Projection projection);  // "self_attn.q_proj", ...

struct LoraShape {
  int64_t rank = 8;
  float alpha = 16.0F;
  float scale() const { return alpha / static_cast<float>(rank); }
};

// y = W x + scale * B (A x).
struct LoraPair {
  Tensor a;  // r, n_in here (column slice for o and down)
  Tensor b;  // n_out here (row slice for q, k, v, gate, up), r
};

class Adapter {
 public:
  // All zeros (a gradient, or a moment); `initialise` makes it a fresh adapter.
  Adapter(const ModelConfig& config, const Shard& shard, LoraShape shape, Placement place,
          const std::string& name);

  const LoraShape& shape() const { return shape_; }
  const LoraPair& pair(int64_t layer, Projection projection) const;
  // A of a group's projections as one matrix: (projections * r, n_in here).
  Tensor stacked_a(int64_t layer, ProjectionGroup group) const;
  // A and B of every pair in a fixed order; names as PEFT saves them.
  const std::vector<ShardedTensor>& tensors() const { return tensors_; }
  // All of this rank's numbers as one vector (padding included, always zero): in the same places whatever the
  // dtype.
  Tensor flat() const;

 private:
  LoraShape shape_;
  Buffer buffer_;
  std::vector<std::array<LoraPair, 7>> layers_;
  std::vector<ShardedTensor> tensors_;
};

// As PEFT starts: A uniform in +-1/sqrt(n_in) (Kaiming with a = sqrt 5), B zero. The same whatever the
// sharding.
void initialise(Adapter& adapter, uint64_t seed);

// Rank and alpha of the adapter in a folder. InputError as load_adapter.
LoraShape read_lora_shape(const std::string& folder);

// Adapter folder: adapter_model.safetensors + adapter_config.json. Reading takes PEFT adapters of type LORA
// on Linear layers with one rank for all modules; modules that are absent stay zero. InputError otherwise.
Adapter load_adapter(const std::string& folder, const ModelConfig& config, const Shard& shard,
                     Placement place);
// Collective over the tensor-parallel group; its rank 0 writes when `writer`. `base` is the name of the base
// model.
void save_adapter(const Adapter& adapter, const std::string& folder, const std::string& base, bool writer,
                  Communicator& tensor_parallel);
// InputError when what save_adapter wrote there has changed since.
void check_saved_adapter(const std::string& folder);

// W += scale * B A for every pair: the merged model (sign -1 takes it out again).
void merge(Parameters& parameters, const Adapter& adapter, float sign);

}  // namespace sl
