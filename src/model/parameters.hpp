// The weights of one tensor-parallel rank, and the low-rank adapters on them. Query, key and value rows are
// stored as one matrix, gate and up as another: one product each. Sharding (DESIGN 2): q/k/v, gate and up by
// rows of the weight (their outputs), o and down by columns (their inputs), embedding and head by vocabulary
// rows.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "core/tensor.hpp"
#include "dist/communicator.hpp"
#include "dist/layout.hpp"
#include "io/weights.hpp"
#include "model/config.hpp"

namespace sl {

// Which part of every weight this rank holds.
struct Shard {
  Shard(const ModelConfig& config, int tp, int tp_rank);  // InputError when tp does not divide what it must

  int tp = 1;
  int tp_rank = 0;
  Range query_heads, key_heads;  // of the model's heads
  Range ffn;                     // rows of gate and up, columns of down
  Range vocabulary;              // rows of embedding and head
  int key_head_copies = 1;       // ranks that hold the same key-value head (tp above the number of them)
};

// How a local tensor lies in the model's tensor of Hugging Face's name.
struct ShardedTensor {
  enum class Axis : uint8_t { replicated, rows, columns };
  std::string name;            // e.g. "model.layers.3.self_attn.q_proj.weight"
  std::vector<int64_t> shape;  // of the whole tensor
  Axis axis = Axis::replicated;
  Range range;     // of that axis, held here
  int copies = 1;  // ranks of the group that hold the same slice, when axis is not replicated
  Tensor local;
};

struct LayerWeights {
  Tensor attention_norm;  // H
  Tensor qkv;             // (Q + 2K) * D, H
  Tensor qkv_bias;        // (Q + 2K) * D, or undefined
  Tensor output;          // H, Q * D
  Tensor ffn_norm;        // H
  Tensor gate_up;         // 2F, H
  Tensor down;            // H, F

  // The same matrices with the rows behind them in which ServedAdapters and TrainingPass keep A:
  // adapter_rank() for each projection of the matrix. The bias is followed by as many zeros.
  struct WithRoom {
    Tensor qkv, qkv_bias, output, gate_up, down;
  };
  WithRoom with_room;
  // And with the columns behind them in which TrainingPass keeps scale * B: adapter_rank().
  struct WithRoomForB {
    Tensor output, down;
  };
  WithRoomForB with_room_for_b;
};

class Parameters {
 public:
  // All zeros. `name` is for the memory table ("weights", "gradients"). `adapter_rank`: how many numbers of
  // the rank all adapters served at a time have together (ServedAdapters::room_for).
  Parameters(const ModelConfig& config, const Shard& shard, Placement place, const std::string& name,
             int64_t adapter_rank = 0);

  Tensor embedding;   // V, H
  Tensor final_norm;  // H
  Tensor head;        // V, H; the embedding itself when tied
  std::vector<LayerWeights> layers;

  // Every distinct weight once (a tied head is the embedding), in a fixed order.
  const std::vector<ShardedTensor>& tensors() const { return tensors_; }
  int64_t bytes() const { return buffer_.bytes(); }
  int64_t adapter_rank() const { return adapter_rank_; }
  // All of this rank's numbers as one vector (padding included, always zero in gradients): in the same places
  // whatever the dtype.
  Tensor flat() const;

 private:
  Buffer buffer_;
  int64_t adapter_rank_ = 0;
  std::vector<ShardedTensor> tensors_;
};

// Reads this rank's slices. InputError when a tensor is missing or has another shape than `config` says.
Parameters load_parameters(const ModelConfig& config, const Shard& shard, Placement place,
                           const WeightFile& file, int64_t adapter_rank = 0);
// Random weights of sensible scale, for measurements.
Parameters random_parameters(const ModelConfig& config, const Shard& shard, const Context& context,
                             uint64_t seed, int64_t adapter_rank = 0);

// The whole tensor on rank 0 (elsewhere empty), row-major: collective over the tensor-parallel group.
std::vector<float> gather_whole(const ShardedTensor& tensor, Communicator& tensor_parallel);
// The slice of a whole tensor that belongs here.
void scatter_whole(const ShardedTensor& tensor, const std::vector<float>& whole);

}  // namespace sl
