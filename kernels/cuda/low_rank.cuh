// The low-rank part of a linear layer as kernels see it: scale * low(t) x b^T is added to row t of the
// layer's output, where low(t) = x(t) x a^T and a, b and scale are those of the row's adapter.
#pragma once

#include "kernels/cuda/rows.cuh"

namespace sl::cuda {

template <typename T>
struct AdapterWeights {
  const T *a, *b;
  int64_t a_stride, b_stride;
  int rank;
  float scale;
};

template <typename T>
struct LowRankLayer {
  static constexpr int most_adapters = 8;  // of one launch

  const int32_t* row_adapters;  // or nullptr: all rows use the first
  int64_t rows;
  int first, count;  // adapter[i] is that of rows with row_adapters(t) = first + i
  AdapterWeights<T> adapter[most_adapters];
  float* low;  // (parts, rows, low_stride); the parts are added
  int parts, low_stride;

  // Index of the row's adapter; -1: none of these.
  __device__ int adapter_of(int64_t row) const {
    if (row >= rows) return -1;
    const int which = (row_adapters == nullptr ? 0 : row_adapters[row]) - first;
    return which >= 0 && which < count ? which : -1;
  }
  __device__ float* low_row(int part, int64_t row) const { return low + (part * rows + row) * low_stride; }
};

}  // namespace sl::cuda
