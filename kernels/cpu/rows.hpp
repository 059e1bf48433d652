// The rows of a matrix in memory: what the loops of the operations index.
#pragma once

#include <cstdint>

#include "core/tensor.hpp"

namespace sl {

// Row i begins at data + i * stride.
struct Rows {
  float* data;
  int64_t stride;
  float* operator[](int64_t i) const { return data + i * stride; }
};

struct ConstRows {
  const float* data;
  int64_t stride;
  ConstRows(const float* first, int64_t row_stride) : data(first), stride(row_stride) {}
  ConstRows(const Rows& rows) : data(rows.data), stride(rows.stride) {}
  const float* operator[](int64_t i) const { return data + i * stride; }
};

inline Rows rows_of(const Tensor& matrix) { return {matrix.data<float>(), matrix.row_stride()}; }

// Loops over fewer numbers than this are not worth waking other threads for.
constexpr int64_t parallel_floats = 1 << 15;

}  // namespace sl
