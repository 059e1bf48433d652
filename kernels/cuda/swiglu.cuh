// What the gated activation and its gradient share: the sigmoid, and gates and ups with what adapters add.
#pragma once

#include <type_traits>

#include "kernels/cuda/low_rank.cuh"

namespace sl::cuda {

// What the storage dtype cannot show is not computed: with bf16, exp and the division are the fast ones (a
// few units in the last place of a float).
__device__ inline float fast_sigmoid(float x) { return __fdividef(1.0F, 1.0F + __expf(-x)); }
__device__ inline float fast_gate(float x) { return __fdividef(x, 1.0F + __expf(-x)); }

template <typename T>
__device__ inline float sigmoid(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return fast_sigmoid(x);
  } else {
    return 1.0F / (1.0F + expf(-x));
  }
}

template <typename T>
__device__ inline float activated(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return fast_gate(x);
  } else {
    return x * sigmoid<T>(x);
  }
}

template <typename T, typename Adapters>
struct GateUp {
  const T* rows;
  int64_t stride;
  int64_t width;
  Adapters adapters;

  template <int N>
  __device__ void load_both(float (&gate)[N], float (&up)[N], int64_t row, int64_t column) const {
    const T* from = rows + row * stride + column;
    load(gate, from);
    load(up, from + width);
    if constexpr (adapted<Adapters>) {
      const RankRange range = adapters.range_of(row);
      for (int r = range.begin; r < range.end; r += 8) {
        add_low_rank(gate, row, 0, r, column);
        add_low_rank(up, row, 1, r, width + column);
      }
    }
  }

 private:
  template <int N>
  __device__ void add_low_rank(float (&x)[N], int64_t row, int projection, int rank, int64_t output) const {
    float low[8];
    RankEight<N, T> b;
    load_low<N>(low, adapters.low_of(row, projection) + rank);
    b.fetch(adapters, rank, output);
    b.add(x, low);
  }
};

}  // namespace sl::cuda
