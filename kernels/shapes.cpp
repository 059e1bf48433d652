#include "kernels/shapes.hpp"

#include <fmt/format.h>

#include <cstring>

namespace sl {
namespace {

[[noreturn]] void complain(const char* op, const NamedTensor& named, const std::string& what) {
  throw BugError(fmt::format("{}: {} is {}, {}", op, named.name, named.tensor.describe(), what));
}

void check_kind(const char* op, Device device, const NamedTensor& named) {
  const Tensor& tensor = named.tensor;
  if (tensor.rank() == 0) throw BugError(fmt::format("{}: {} is missing", op, named.name));
  if (tensor.device() != device) complain(op, named, fmt::format("not on {}", name_of(device)));
  if (tensor.dtype() != named.dtype) complain(op, named, fmt::format("not of {}", name_of(named.dtype)));
  if (tensor.rank() != static_cast<int>(std::strlen(named.letters)))
    complain(op, named, fmt::format("not of shape {}", named.letters));
  if (tensor.rank() != 2 && !tensor.contiguous()) complain(op, named, "not dense");
}

}  // namespace

Dims match_shapes(const char* op, Device device, std::initializer_list<NamedTensor> tensors,
                  std::initializer_list<BoundLetter> bound) {
  Dims dims;
  for (const BoundLetter& letter : bound) dims[letter.letter] = letter.value;
  for (const NamedTensor& named : tensors) {
    if (named.optional && !named.tensor.defined()) continue;
    check_kind(op, device, named);
    for (int i = 0; i < named.tensor.rank(); ++i) {
      int64_t& size = dims[named.letters[i]];
      if (size < 0) size = named.tensor.dim(i);
      if (size != named.tensor.dim(i)) {
        complain(op, named, fmt::format("but dimension {} ({}) must be {}", i, named.letters[i], size));
      }
    }
  }
  return dims;
}

}  // namespace sl
