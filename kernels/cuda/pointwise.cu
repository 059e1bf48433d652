// Operations element by element: copy, addition, fills.
//
// Measured on one H100 80GB HBM3 (cudaMemcpy of 1 GiB: 2.43 TB/s, read and written): Copy 2.97-3.07 TB/s for
// every pair of dtypes, Add 3.06, Fill 3.29. FillUniform is bound by Philox: 650 billion numbers a second.
#include <string>

#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/rows.cuh"

namespace sl {
namespace {

using namespace cuda;

template <typename From, typename To>
struct CopyElements {
  const From* x;
  int64_t x_stride;
  To* out;
  int64_t out_stride;
  float scale;

  template <int N>
  __device__ void at(int64_t row, int64_t column) const {
    float values[N];
    load(values, x + row * x_stride + column);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] *= scale;
    store(out + row * out_stride + column, values);
  }
};

template <typename From, typename To>
struct AddElements {
  const From* x;
  int64_t x_stride;
  To* out;
  int64_t out_stride;
  float scale;

  template <int N>
  __device__ void at(int64_t row, int64_t column) const {
    To* place = out + row * out_stride + column;
    float values[N], sums[N];
    load(values, x + row * x_stride + column);
    load(sums, place);
#pragma unroll
    for (int i = 0; i < N; ++i) sums[i] += scale * values[i];
    store(place, sums);
  }
};

template <typename T>
struct FillElements {
  T* out;
  int64_t stride;
  float value;

  template <int N>
  __device__ void at(int64_t row, int64_t column) const {
    float values[N];
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = value;
    store(out + row * stride + column, values);
  }
};

// Four numbers a block of Philox, counted through all rows.
template <typename T>
struct UniformElements {
  T* out;
  int64_t stride;
  int64_t width;
  float scale;
  uint64_t stream;

  template <int N>
  __device__ void at(int64_t row, int64_t column) const {
    const int64_t index = row * width + column;
    const uint4 block = philox_block(stream, static_cast<uint64_t>(index) / 4);
    const uint32_t draws[4] = {block.x, block.y, block.z, block.w};
    float values[N];
    if constexpr (N == 4) {
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = scale * (2.0F * uniform_of(draws[i]) - 1.0F);
    } else {
      static_assert(N == 1);
      uint32_t draw = draws[0];
#pragma unroll
      for (int i = 1; i < 4; ++i) {
        if (index % 4 == i) draw = draws[i];
      }
      values[0] = scale * (2.0F * uniform_of(draw) - 1.0F);
    }
    store(out + row * stride + column, values);
  }
};

// What one launch of copies takes along.
template <typename From, typename To>
struct CopiedTogether {
  static constexpr int most = 64;
  struct One {
    int64_t rows, width;
    CopyElements<From, To> elements;
  };
  One all[most];
};

// The blocks of one y share one copy.
template <int N, typename From, typename To>
__global__ void __launch_bounds__(element_threads)
    copy_together(const __grid_constant__ CopiedTogether<From, To> copies) {
  wait_for_previous();
  start_next();
  const auto& one = copies.all[blockIdx.y];
  const int64_t across = (one.width + N - 1) / N;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < one.rows * across; i += step) {
    const int64_t row = i / across, column = i % across * N;
    if (column + N <= one.width) {
      one.elements.template at<N>(row, column);
    } else {
      for (int64_t at = column; at < one.width; ++at) one.elements.template at<1>(row, at);
    }
  }
}

// For two tensors of one shape; names the op when they are not.
Flat flatten_both(const char* op, Device device, const Tensor& x, const Tensor& out) {
  bool same = x.device() == device && out.device() == device && x.rank() == out.rank() && x.rank() > 0;
  for (int i = 0; same && i < x.rank(); ++i) same = x.dim(i) == out.dim(i);
  if (!same) throw BugError(std::string(op) + ": x is " + x.describe() + " but out is " + out.describe());
  return flatten(x, x.contiguous() && out.contiguous());
}

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const Copy& op) {
  const Flat flat = flatten_both("Copy", context.device, op.x, op.out);
  with_element_types(op.x.dtype(), op.out.dtype(), [&](auto from, auto to) {
    using From = decltype(from);
    using To = decltype(to);
    constexpr int n = elements_at_once<From, To>;
    for_each_element<n>(context, flat, rows_aligned(n, {&op.x, &op.out}, flat.rows == 1),
                        CopyElements<From, To>{pointer<From>(op.x), op.x.row_stride(), pointer<To>(op.out),
                                               op.out.row_stride(), op.scale});
  });
}

template <>
void launch<Device::cuda>(const Context& context, const Copies& op) {
  if (op.all.empty()) return;
  const DType from_dtype = op.all.front().x.dtype(), to_dtype = op.all.front().out.dtype();
  with_element_types(from_dtype, to_dtype, [&](auto from, auto to) {
    using From = decltype(from);
    using To = decltype(to);
    using Together = CopiedTogether<From, To>;
    constexpr int n = elements_at_once<From, To>;
    constexpr int64_t most_blocks = 32;
    for (size_t first = 0; first < op.all.size(); first += Together::most) {
      const auto part = op.all.subspan(first, std::min<size_t>(Together::most, op.all.size() - first));
      Together together = {};
      bool aligned = true;
      int64_t most_elements = 0;
      for (size_t i = 0; i < part.size(); ++i) {
        const Copy& copy = part[i];
        require(copy.x.dtype() == from_dtype && copy.out.dtype() == to_dtype, "Copies: of several dtypes");
        const Flat flat = flatten_both("Copies", context.device, copy.x, copy.out);
        aligned = aligned && rows_aligned(n, {&copy.x, &copy.out}, flat.rows == 1);
        most_elements = std::max(most_elements, flat.rows * flat.width);
        together.all[i] = {flat.rows,
                           flat.width,
                           {pointer<From>(copy.x), copy.x.row_stride(), pointer<To>(copy.out),
                            copy.out.row_stride(), copy.scale}};
      }
      const int64_t blocks =
          std::min(most_blocks, ceil_div(most_elements, int64_t{element_threads} * (aligned ? n : 1)));
      launch_kernel(context, aligned ? copy_together<n, From, To> : copy_together<1, From, To>,
                    dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(part.size())),
                    dim3(element_threads), 0, together);
    }
  });
}

template <>
void launch<Device::cuda>(const Context& context, const Add& op) {
  const Flat flat = flatten_both("Add", context.device, op.x, op.out);
  with_element_types(op.x.dtype(), op.out.dtype(), [&](auto from, auto to) {
    using From = decltype(from);
    using To = decltype(to);
    constexpr int n = elements_at_once<From, To>;
    for_each_element<n>(context, flat, rows_aligned(n, {&op.x, &op.out}, flat.rows == 1),
                        AddElements<From, To>{pointer<From>(op.x), op.x.row_stride(), pointer<To>(op.out),
                                              op.out.row_stride(), op.scale});
  });
}

template <>
void launch<Device::cuda>(const Context& context, const Fill& op) {
  require(op.out.device() == context.device && op.out.defined(), "Fill: out is missing or elsewhere");
  const Flat flat = flatten(op.out, op.out.contiguous());
  with_element_type(op.out.dtype(), [&](auto element) {
    using T = decltype(element);
    constexpr int n = elements_at_once<T>;
    for_each_element<n>(context, flat, rows_aligned(n, {&op.out}, flat.rows == 1),
                        FillElements<T>{pointer<T>(op.out), op.out.row_stride(), op.value});
  });
}

template <>
void launch<Device::cuda>(const Context& context, const FillUniform& op) {
  require(op.out.device() == context.device && op.out.defined(), "FillUniform: out is missing or elsewhere");
  const Flat flat = flatten(op.out, op.out.contiguous());
  with_element_type(op.out.dtype(), [&](auto element) {
    using T = decltype(element);
    const bool whole_blocks = flat.rows == 1 || flat.width % 4 == 0;
    for_each_element<4>(
        context, flat, whole_blocks && rows_aligned(4, {&op.out}, flat.rows == 1),
        UniformElements<T>{pointer<T>(op.out), op.out.row_stride(), flat.width, op.width, op.stream});
  });
}

}  // namespace sl
