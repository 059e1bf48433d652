// The adapters that inference uses, in the form that its kernels read (LowRank in kernels/ops.hpp): the rows
// of A stand behind the weights they go with, in the room that Parameters has for them, so that one product
// gives W x and A x; B is packed here.
//
// Every adapter takes a range of the rank, a multiple of 8, in all layers. With tensor parallelism q, k, v,
// gate and up have all of A on every rank and their part of B; o and down have their part of A, whose
// products are summed over the ranks along with those of W, and all of B.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "model/adapter.hpp"
#include "model/parameters.hpp"

namespace sl {

struct Transformer;

class ServedAdapters {
 public:
  // What Parameters must have room for to serve adapters of these shapes at a time.
  static int64_t room_for(std::span<const LoraShape> shapes);

  // None at first. One object at a time uses the room of one Parameters: a TrainingPass with an adapter takes
  // it too, and load() takes it back.
  explicit ServedAdapters(const Transformer& model);
  // Bytes of device memory that the constructor takes.
  static int64_t bytes(const Transformer& model);

  // Copies them in the place of those before. BugError when there is no room for all. Nothing that reads the
  // old ones may be launched while this runs; returns when it is done.
  void load(std::span<const Adapter* const> adapters);

  int64_t count() const { return static_cast<int64_t>(ranges_.size()); }
  // Numbers of the rank that each projection has in the outputs of a product: those of all adapters.
  int64_t rank() const { return rank_; }
  // Begin and end of an adapter's range; an empty one for -1.
  std::array<int32_t, 2> range(int32_t adapter) const;

  // B of a layer's matrices, as LowRank wants it.
  struct Layer {
    Tensor qkv, output, gate_up, down;
  };
  const Layer& layer(int64_t i) const { return layers_[static_cast<size_t>(i)]; }

 private:
  void load(const Adapter& adapter, int64_t begin);

  Context context_;
  const Parameters* parameters_;
  int64_t rank_;
  Buffer buffer_;
  std::vector<Layer> layers_;
  std::vector<std::array<int32_t, 2>> ranges_;
};

}  // namespace sl
