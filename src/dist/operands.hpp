// What collectives demand of their tensors, the same for every communicator.
#pragma once

#include <string>

#include "core/error.hpp"
#include "core/tensor.hpp"

namespace sl {

inline void require_numbers(const char* call, const Tensor& tensor) {
  require(tensor.contiguous() && (tensor.dtype() == DType::f32 || tensor.dtype() == DType::bf16),
          std::string(call) + " of " + tensor.describe());
}

// `whole` has room for a part of each of so many ranks.
inline void require_parts(const char* call, const Tensor& whole, const Tensor& part, int ranks) {
  require(whole.contiguous() && part.contiguous() && whole.dtype() == part.dtype() &&
              whole.device() == part.device() && whole.size() == part.size() * ranks,
          std::string(call) + " between " + whole.describe() + " and " + part.describe() + " of " +
              std::to_string(ranks) + " ranks");
}

}  // namespace sl
