// What low-rank adapters add to the outputs of a linear layer (LowRank of ops.hpp), for the kernels that read
// them. b comes from far memory and is not written while kernels run (the host waits after PackLowRank), so a
// kernel may fetch it while the product before it still runs.
#pragma once

#include <string>
#include <type_traits>

#include "kernels/cuda/rows.cuh"

namespace sl::cuda {

// The numbers of the rank that a row uses: begin .. end, multiples of 8.
struct RankRange {
  int begin = 0, end = 0;
};

template <typename T>
struct LowRankLayer {
  const T* low;
  int64_t low_stride;
  const T* b;
  int64_t outputs;
  const int32_t* ranges;
  int rank;  // of all adapters together

  __device__ RankRange range_of(int64_t row) const { return {ranges[2 * row], ranges[2 * row + 1]}; }
  __device__ const T* low_of(int64_t row, int projection) const {
    return low + row * low_stride + projection * rank;
  }
};

// In the place of a layer, for kernels that may do without.
struct NoAdapters {};
template <typename Adapters>
constexpr bool adapted = !std::is_same_v<Adapters, NoAdapters>;

// Eight numbers of a row of low. One by one for kernels that take one column at a time, since nothing needs
// to be aligned for them.
template <int N, typename T>
__device__ inline void load_low(float (&low)[8], const T* from) {
  if constexpr (N > 1) {
    load(low, from);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) low[i] = to_float(from[i]);
  }
}

// b of eight numbers of the rank and N neighbouring outputs, kept as it lies in memory: with bf16 that is
// half the registers that floats take.
template <int N, typename T>
class RankEight {
 public:
  __device__ void fetch(const LowRankLayer<T>& layer, int rank, int64_t output) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      const T* from = layer.b + ((rank / 2 + pair) * layer.outputs + output) * 2;
      if constexpr (words % 4 == 0) {
#pragma unroll
        for (int i = 0; i < words / 4; ++i) {
          const uint4 four = reinterpret_cast<const uint4*>(from)[i];
          words_[pair][4 * i] = four.x;
          words_[pair][4 * i + 1] = four.y;
          words_[pair][4 * i + 2] = four.z;
          words_[pair][4 * i + 3] = four.w;
        }
      } else {
#pragma unroll
        for (int i = 0; i < words; ++i) words_[pair][i] = reinterpret_cast<const uint32_t*>(from)[i];
      }
    }
  }

  // x(i) += low x b^T, in the order of the rank.
  __device__ void add(float (&x)[N], const float (&low)[8]) const {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if constexpr (sizeof(T) == 4) {
          x[i] = fmaf(low[2 * pair], __uint_as_float(words_[pair][2 * i]), x[i]);
          x[i] = fmaf(low[2 * pair + 1], __uint_as_float(words_[pair][2 * i + 1]), x[i]);
        } else {
          x[i] = fmaf(low[2 * pair], __uint_as_float(words_[pair][i] << 16), x[i]);
          x[i] = fmaf(low[2 * pair + 1], __uint_as_float(words_[pair][i] & 0xFFFF0000U), x[i]);
        }
      }
    }
  }

 private:
  static constexpr int words = N * 2 * static_cast<int>(sizeof(T)) / 4;  // of a pair of the rank
  uint32_t words_[4][words];
};

// For an operation named `op` on `rows` rows of a layer's outputs, which are of several projections.
template <typename T>
LowRankLayer<T> layer_of(const char* op, const Context& context, const LowRank& adapters, DType storage,
                         int64_t rows, int64_t outputs, int64_t projections) {
  const Dims dims = match_shapes(op, context.device,
                                 {{"adapters.low", adapters.low, "TL", storage},
                                  {"adapters.b", adapters.b, "NO", storage},
                                  {"adapters.ranges", adapters.ranges, "TB", DType::i32}},
                                 {{'T', rows}, {'O', 2 * outputs}, {'B', 2}});
  require(dims['L'] == projections * 2 * dims['N'] && adapters.b.contiguous() && adapters.ranges.contiguous(),
          std::string(op) + ": low and b of adapters do not fit each other");
  return {.low = pointer<T>(adapters.low),
          .low_stride = adapters.low.row_stride(),
          .b = pointer<T>(adapters.b),
          .outputs = outputs,
          .ranges = adapters.ranges.data<int32_t>(),
          .rank = static_cast<int>(2 * dims['N'])};
}

// Whether kernels may read n elements at once, as rows_aligned says for tensors.
inline bool rows_aligned(int n, const LowRank& adapters) {
  return !adapters.defined() || rows_aligned(n, {&adapters.low, &adapters.b});
}

}  // namespace sl::cuda
