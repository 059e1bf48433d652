// What the kernels that go over rows share: some elements at a time as floats, launches over all elements of
// a matrix, sums over a block.
//
// A functor with a member template `at<N>(row, column)` says what happens to N neighbouring elements; the
// launch picks N so that accesses are of 16 bytes where the addresses allow it, else 1. Ends of rows that do
// not fill N elements are done one by one.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "kernels/cuda/common.cuh"

namespace sl::cuda {

// As with_element_type, for two tensors that need not agree.
template <typename F>
void with_element_types(DType first, DType second, F&& f) {
  with_element_type(first, [&](auto a) { with_element_type(second, [&](auto b) { f(a, b); }); });
}

// Elements that one thread takes of tensors with these element types: 16 bytes of the widest.
template <typename... T>
constexpr int elements_at_once = 16 / static_cast<int>(std::max({sizeof(T)...}));

// N consecutive elements; their address is a multiple of N elements (or of 16 bytes, where that is less).
template <int N, typename T>
__device__ inline void load(float (&x)[N], const T* from) {
  constexpr int bytes = N * sizeof(T);
  if constexpr (N == 1) {
    x[0] = to_float(*from);
  } else {
    static_assert(bytes == 8 || bytes % 16 == 0);
    uint32_t words[bytes / 4];
    if constexpr (bytes == 8) {
      const uint2 two = *reinterpret_cast<const uint2*>(from);
      words[0] = two.x;
      words[1] = two.y;
    } else {
#pragma unroll
      for (int i = 0; i < bytes / 16; ++i) {
        const uint4 four = reinterpret_cast<const uint4*>(from)[i];
        words[4 * i] = four.x;
        words[4 * i + 1] = four.y;
        words[4 * i + 2] = four.z;
        words[4 * i + 3] = four.w;
      }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if constexpr (sizeof(T) == 4) {
        x[i] = __uint_as_float(words[i]);
      } else {
        x[i] = __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xFFFF0000U);
      }
    }
  }
}

template <int N, typename T>
__device__ inline void store(T* to, const float (&x)[N]) {
  constexpr int bytes = N * sizeof(T);
  if constexpr (N == 1) {
    *to = from_float<T>(x[0]);
  } else {
    static_assert(bytes == 8 || bytes % 16 == 0);
    uint32_t words[bytes / 4];
#pragma unroll
    for (int i = 0; i < bytes / 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        words[i] = __float_as_uint(x[i]);
      } else {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
        words[i] = *reinterpret_cast<const uint32_t*>(&pair);
      }
    }
    if constexpr (bytes == 8) {
      *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else {
#pragma unroll
      for (int i = 0; i < bytes / 16; ++i)
        reinterpret_cast<uint4*>(to)[i] =
            make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
  }
}

// The first n of N elements, zeros after them; and back.
template <int N, typename T>
__device__ inline void load_some(float (&x)[N], const T* from, int64_t n) {
  if (n >= N) return load(x, from);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = i < n ? to_float(from[i]) : 0.0F;
}
template <int N, typename T>
__device__ inline void store_some(T* to, const float (&x)[N], int64_t n) {
  if (n >= N) return store(to, x);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < n) to[i] = from_float<T>(x[i]);
  }
}

// Whether every row of all these tensors begins at a multiple of n elements; `flat`: they are seen as one
// row. Undefined ones do not matter.
inline bool rows_aligned(int n, std::initializer_list<const Tensor*> tensors, bool flat = false) {
  return std::all_of(tensors.begin(), tensors.end(), [n, flat](const Tensor* tensor) {
    if (!tensor->defined()) return true;
    const int64_t bytes = std::min<int64_t>(n * size_of(tensor->dtype()), 16);
    const bool one_row = flat || tensor->rank() < 2 || tensor->rows() <= 1;
    return reinterpret_cast<uintptr_t>(tensor->raw()) % static_cast<uintptr_t>(bytes) == 0 &&
           (one_row || tensor->row_stride() % n == 0);
  });
}

// A tensor as rows: all of it as one where no tensor of the op has gaps.
struct Flat {
  int64_t rows, width;
};
inline Flat flatten(const Tensor& x, bool dense) {
  if (dense) return {1, x.size()};
  return {x.dim(0), x.size() / std::max<int64_t>(x.dim(0), 1)};
}

constexpr int element_threads = 256;

template <int N, typename F>
__global__ void __launch_bounds__(element_threads)
    each_element(int64_t rows, int64_t width, const __grid_constant__ F f) {
  wait_for_previous();
  start_next();
  const int64_t column = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  if (column >= width) return;
  const int64_t step = int64_t{gridDim.y} * blockDim.y;
  for (int64_t row = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; row < rows; row += step) {
    if (column + N <= width) {
      f.template at<N>(row, column);
    } else {
      for (int64_t i = column; i < width; ++i) f.template at<1>(row, i);
    }
  }
}

// Runs f over all elements, N at a time when `aligned`.
template <int N, typename F>
void for_each_element(const Context& context, Flat flat, bool aligned, const F& f) {
  if (flat.rows == 0 || flat.width == 0) return;
  const int64_t across = ceil_div(flat.width, aligned ? N : 1);
  int64_t x = 32;  // threads along a row; the block's others take other rows
  while (x < element_threads && x < across) x *= 2;
  const int64_t y = element_threads / x;
  const dim3 block(static_cast<unsigned>(x), static_cast<unsigned>(y));
  const dim3 grid(static_cast<unsigned>(ceil_div(across, x)),
                  static_cast<unsigned>(std::min<int64_t>(ceil_div(flat.rows, y), 65535)));
  launch_kernel(context, aligned ? each_element<N, F> : each_element<1, F>, grid, block, 0, flat.rows,
                flat.width, f);
}

// Sums over all threads of the block, the same bits in each. Called once a kernel: the space is not reused.
template <int Count>
__device__ inline void block_sums(float (&x)[Count]) {
  __shared__ float of_warps[Count][32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    x[i] = warp_sum(x[i]);
    if (lane == 0) of_warps[i][warp] = x[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Count; ++i) x[i] = warp_sum(lane * 32 < blockDim.x ? of_warps[i][lane] : 0.0F);
}

}  // namespace sl::cuda
