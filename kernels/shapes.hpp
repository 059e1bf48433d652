// The check of shapes at the door of an operation: one call names every tensor with its shape letters (legend
// in ops.hpp), binds each letter where it is first seen, and names the dimension that disagrees. Nothing is
// built unless something is wrong.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "core/tensor.hpp"

namespace sl {

// One tensor of an op: letters "TH" means two dimensions, T and H, capitals only. A matrix may have strided
// rows; tensors of other ranks must be dense.
struct NamedTensor {
  const char* name;
  const Tensor& tensor;
  const char* letters;
  DType dtype = DType::f32;
  bool optional = false;  // may be undefined
};

struct BoundLetter {
  char letter;
  int64_t value;
};

// The size that each letter stands for.
class Dims {
 public:
  Dims() { sizes_.fill(-1); }
  int64_t operator[](char letter) const { return sizes_[static_cast<size_t>(letter - 'A')]; }
  int64_t& operator[](char letter) { return sizes_[static_cast<size_t>(letter - 'A')]; }

 private:
  std::array<int64_t, 26> sizes_;
};

// Throws BugError naming op, tensor and dimension when a tensor is missing, on another device, of another
// dtype or rank, or disagrees with a letter bound before (by `bound` or by an earlier tensor).
Dims match_shapes(const char* op, Device device, std::initializer_list<NamedTensor> tensors,
                  std::initializer_list<BoundLetter> bound = {});

}  // namespace sl
