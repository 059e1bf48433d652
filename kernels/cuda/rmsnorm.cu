// Root-mean-square normalisation (Zhang and Sennrich 2019) with the residual addition before it.
//
// One block a row, four numbers a thread at a time; the row stays in registers between the sum of squares and
// the scaling, so every byte is moved once. Rows that are too wide or not aligned are read again instead.
//
// With adapters a block adds their part to delta on the way: it fetches its row's b into registers (8 ranks
// of 8 or 16 columns a thread) while the product before still runs.
//
// Measured on one H100 80GB HBM3, hidden 3584, in a graph: AddRmsNorm 1.4 us for 1 row, 1.7 for 64, 3.0 for
// 256, 120 for 8,192 (2.94 TB/s; copy 3.02); RmsNormBackward of 8,192 rows 138 us (2.98 TB/s), with the
// gradient of the weight 204. On one H200 (copy 4.2 TB/s), by ncu, RmsNormBackward of 4,096 rows with both
// outputs beside the gradient 70 us (3.7 TB/s); where it fetched grad_x after the sums only, 89.
#include <cstdint>

#include "kernels/cuda/low_rank.cuh"

namespace sl {
namespace {

using namespace cuda;

template <typename T>
struct Row {  // row t begins at data + t * stride
  T* data;
  int64_t stride;
  __device__ T* operator[](int64_t t) const { return data + t * stride; }
};
template <typename T>
Row<T> row_of(const Tensor& tensor) {
  return {pointer<T>(tensor), tensor.defined() ? tensor.row_stride() : 0};
}

// Threads of a block at most: with adapters each keeps more in registers.
template <typename Adapters>
constexpr int most_threads = adapted<Adapters> ? 512 : 1024;

// `Parts` parts of four columns a thread.
template <int Parts, typename T, typename Adapters>
__global__ void __launch_bounds__(most_threads<Adapters>)
    add_rms_norm(Row<float> residual, Row<const T> delta, const T* weight, float epsilon, Row<T> out,
                 int64_t width, const __grid_constant__ Adapters adapters) {
  const int64_t t = blockIdx.x;
  float w[Parts][4], x[Parts][4];
  const auto for_each_part = [width](auto&& f) {
#pragma unroll
    for (int i = 0; i < Parts; ++i) {
      const int64_t column = (int64_t{i} * blockDim.x + threadIdx.x) * 4;
      if (column < width) f(i, column);
    }
  };
  for_each_part([&](int i, int64_t column) { load(w[i], weight + column); });
  RankEight<4, T> b[Parts];
  RankRange range;
  if constexpr (adapted<Adapters>) {
    range = adapters.range_of(t);
    if (range.begin < range.end)
      for_each_part([&](int i, int64_t column) { b[i].fetch(adapters, range.begin, column); });
  }
  wait_for_previous();
  start_next();
  float sum[1] = {};
  for_each_part([&](int i, int64_t column) { load(x[i], residual[t] + column); });
  if (adapted<Adapters> || delta.data != nullptr) {
    float change[Parts][4];
    for_each_part([&](int i, int64_t column) { load(change[i], delta[t] + column); });
    if constexpr (adapted<Adapters>) {
      for (int r = range.begin; r < range.end; r += 8) {
        float low[8];
        load_low<4>(low, adapters.low_of(t, 0) + r);
        for_each_part([&](int i, int64_t column) {
          if (r > range.begin) b[i].fetch(adapters, r, column);
          b[i].add(change[i], low);
        });
      }
    }
    for_each_part([&](int i, int64_t column) {
#pragma unroll
      for (int j = 0; j < 4; ++j) x[i][j] += change[i][j];
      store(residual[t] + column, x[i]);
    });
  }
  for_each_part([&](int i, int64_t) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[0] += x[i][j] * x[i][j];
  });
  block_sums(sum);
  const float inverse = rsqrtf(sum[0] / static_cast<float>(width) + epsilon);
  for_each_part([&](int i, int64_t column) {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[i][j] *= inverse * w[i][j];
    store(out[t] + column, x[i]);
  });
}

// Any width and alignment.
template <typename T, typename Adapters>
__global__ void __launch_bounds__(most_threads<Adapters>)
    add_rms_norm_plain(Row<float> residual, Row<const T> delta, const T* weight, float epsilon, Row<T> out,
                       int64_t width, const __grid_constant__ Adapters adapters) {
  wait_for_previous();
  start_next();
  const int64_t t = blockIdx.x;
  float sum[1] = {};
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    float x = residual[t][i];
    if (delta.data != nullptr) {
      float change[1] = {to_float(delta[t][i])};
      if constexpr (adapted<Adapters>) {
        const RankRange range = adapters.range_of(t);
        for (int r = range.begin; r < range.end; r += 8) {
          RankEight<1, T> b;
          float low[8];
          b.fetch(adapters, r, i);
          load_low<1>(low, adapters.low_of(t, 0) + r);
          b.add(change, low);
        }
      }
      x += change[0];
      residual[t][i] = x;
    }
    sum[0] += x * x;
  }
  block_sums(sum);
  const float inverse = rsqrtf(sum[0] / static_cast<float>(width) + epsilon);
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x)
    out[t][i] = from_float<T>(residual[t][i] * inverse * to_float(weight[i]));
}

// 1 / rms of every row, from its gradient kernel for that of the weight. A chunk of rows at a time has its
// place here, because the operation brings no scratch.
constexpr int64_t chunk_rows = 1 << 15;
__device__ float inverses[chunk_rows];

// With r = 1 / rms(x) and g = grad_out * weight: grad_x += r g - x r^3 (g . x) / H. Parts = 0: any width and
// alignment, columns one by one and read twice.
template <int Parts, typename X, typename T, typename R>
__global__ void __launch_bounds__(1024)
    rms_norm_backward(Row<const X> x, const T* weight, float epsilon, Row<const T> grad_out, Row<R> grad_x,
                      Row<T> rounded, Row<T> normalised, int64_t width) {
  wait_for_previous();
  start_next();
  const int64_t t = blockIdx.x;
  constexpr int kept = Parts > 0 ? Parts : 1, n = Parts > 0 ? 4 : 1;
  // Whether there are registers to fetch grad_x before the sums are known, instead of waiting for it after.
  constexpr bool ahead = Parts == 2;
  float xs[kept][n], gs[kept][n], results[ahead ? kept : 1][n];
  float sums[2] = {};  // x . x, g . x
  const auto read = [&](float(&xi)[n], float(&gi)[n], int64_t column) {
    float w[n];
    load(xi, x[t] + column);
    load(gi, grad_out[t] + column);
    load(w, weight + column);
#pragma unroll
    for (int j = 0; j < n; ++j) gi[j] *= w[j];
  };
  const auto add_to_sums = [&](const float(&xi)[n], const float(&gi)[n]) {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      sums[0] += xi[j] * xi[j];
      sums[1] += gi[j] * xi[j];
    }
  };
  const auto for_each_part = [width](auto&& f) {
    if constexpr (Parts > 0) {
#pragma unroll
      for (int i = 0; i < Parts; ++i) {
        const int64_t column = (int64_t{i} * blockDim.x + threadIdx.x) * n;
        if (column < width) f(i, column);
      }
    } else {
      for (int64_t column = threadIdx.x; column < width; column += blockDim.x) f(0, column);
    }
  };
  for_each_part([&](int i, int64_t column) {
    read(xs[i], gs[i], column);
    if constexpr (ahead) load(results[i], grad_x[t] + column);
    if constexpr (Parts == 0) add_to_sums(xs[i], gs[i]);
  });
  if constexpr (Parts > 0) for_each_part([&](int i, int64_t) { add_to_sums(xs[i], gs[i]); });
  block_sums(sums);
  const float inverse = rsqrtf(sums[0] / static_cast<float>(width) + epsilon);
  const float along = sums[1] * inverse * inverse * inverse / static_cast<float>(width);
  if (threadIdx.x == 0) inverses[t] = inverse;
  for_each_part([&](int i, int64_t column) {
    if constexpr (Parts == 0) read(xs[i], gs[i], column);
    auto& result = results[ahead ? i : 0];
    if constexpr (!ahead) load(result, grad_x[t] + column);
#pragma unroll
    for (int j = 0; j < n; ++j) result[j] += inverse * gs[i][j] - along * xs[i][j];
    store(grad_x[t] + column, result);
    if (rounded.data != nullptr) store(rounded[t] + column, result);
    if (normalised.data == nullptr) return;
    float w[n];
    load(w, weight + column);
#pragma unroll
    for (int j = 0; j < n; ++j) w[j] = Parts > 0 ? xs[i][j] * (inverse * w[j]) : xs[i][j] * inverse * w[j];
    store(normalised[t] + column, w);
  });
}

// grad_weight(i) += sum over rows of grad_out * x / rms, for 32 columns a block. Its 32 warps take every 32nd
// row each; their sums are added in order, so that the result is the same in every run.
template <typename X, typename T, typename W>
__global__ void __launch_bounds__(1024)
    weight_gradient(Row<const X> x, Row<const T> grad_out, W* grad_weight, int64_t rows, int64_t width) {
  wait_for_previous();
  start_next();
  __shared__ float of_warps[32][33];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = int64_t{blockIdx.x} * 32 + lane;
  float sum = 0.0F;
  if (column < width) {
#pragma unroll 8
    for (int64_t t = warp; t < rows; t += 32)
      sum += to_float(grad_out[t][column]) * to_float(x[t][column]) * inverses[t];
  }
  of_warps[warp][lane] = sum;
  __syncthreads();
  const float total = warp_sum(of_warps[lane][warp]);  // of column `warp` of this block's
  const int64_t mine = int64_t{blockIdx.x} * 32 + warp;
  if (lane == 0 && mine < width) grad_weight[mine] = from_float<W>(to_float(grad_weight[mine]) + total);
}

// Threads for rows of `width` columns in `parts` parts of four; for the plain kernels parts is 0.
unsigned threads_for(int64_t width, int parts, int most = 1024) {
  const int64_t wanted = parts == 0 ? width : ceil_div(width, 4 * parts);
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(wanted, 32) * 32, 32, most));
}

// Parts a thread, of the numbers that are compiled; 0: plain.
int parts_for(int64_t width, bool aligned, int most = 1024) {
  if (!aligned || width % 4 != 0 || width > int64_t{4} * 4 * most) return 0;
  return width <= int64_t{2} * 4 * most ? 2 : 4;
}

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const AddRmsNorm& op) {
  const DType storage = op.weight.dtype();
  const Dims dims = match_shapes("AddRmsNorm", context.device,
                                 {{"residual", op.residual, "TH"},
                                  {"delta", op.delta, "TH", storage, true},
                                  {"weight", op.weight, "H", storage},
                                  {"out", op.out, "TH", storage}});
  require(op.delta.defined() || !op.adapters.defined(), "AddRmsNorm: adapters of a delta that is missing");
  const int64_t width = dims['H'];
  const bool aligned = rows_aligned(4, {&op.residual, &op.delta, &op.weight, &op.out});
  with_element_type(storage, [&](auto element) {
    using T = decltype(element);
    const auto launch_norm = [&](auto adapters) {
      using Adapters = decltype(adapters);
      const int parts = parts_for(width, aligned && rows_aligned(8, op.adapters), most_threads<Adapters>);
      const auto kernel = parts == 2   ? add_rms_norm<2, T, Adapters>
                          : parts == 4 ? add_rms_norm<4, T, Adapters>
                                       : add_rms_norm_plain<T, Adapters>;
      launch_kernel(context, kernel, static_cast<unsigned>(dims['T']),
                    threads_for(width, parts, most_threads<Adapters>), 0, row_of<float>(op.residual),
                    row_of<const T>(op.delta), pointer<T>(op.weight), op.epsilon, row_of<T>(op.out), width,
                    adapters);
    };
    if (!op.adapters.defined()) return launch_norm(NoAdapters{});
    launch_norm(layer_of<T>("AddRmsNorm", context, op.adapters, storage, dims['T'], width, 1));
  });
}

template <>
void launch<Device::cuda>(const Context& context, const RmsNormBackward& op) {
  const DType storage = op.weight.dtype();
  const Dims dims = match_shapes("RmsNormBackward", context.device,
                                 {{"x", op.x, "TH", op.x.dtype()},
                                  {"weight", op.weight, "H", storage},
                                  {"grad_out", op.grad_out, "TH", storage},
                                  {"grad_x", op.grad_x, "TH", op.grad_x.dtype()},
                                  {"grad_weight", op.grad_weight, "H",
                                   op.grad_weight.defined() ? op.grad_weight.dtype() : storage, true},
                                  {"rounded", op.rounded, "TH", storage, true},
                                  {"normalised", op.normalised, "TH", storage, true}});
  const int64_t rows = dims['T'], width = dims['H'];
  const int parts = parts_for(
      width, rows_aligned(4, {&op.x, &op.weight, &op.grad_out, &op.grad_x, &op.rounded, &op.normalised}));
  with_element_types(op.x.dtype(), op.grad_x.dtype(), [&](auto x_element, auto grad_element) {
    with_element_type(storage, [&](auto element) {
      using X = decltype(x_element);
      using R = decltype(grad_element);
      using T = decltype(element);
      if constexpr (std::is_same_v<T, float> && !(std::is_same_v<X, float> && std::is_same_v<R, float>)) {
        throw BugError("RmsNormBackward: bf16 tensors with f32 weights");
      } else {
        const auto kernel = parts == 2   ? rms_norm_backward<2, X, T, R>
                            : parts == 4 ? rms_norm_backward<4, X, T, R>
                                         : rms_norm_backward<0, X, T, R>;
        for (int64_t begin = 0; begin < rows; begin += chunk_rows) {
          const int64_t end = std::min(begin + chunk_rows, rows);
          const auto x = row_of<const X>(op.x.rows(begin, end));
          const auto grad_out = row_of<const T>(op.grad_out.rows(begin, end));
          launch_kernel(context, kernel, static_cast<unsigned>(end - begin), threads_for(width, parts), 0, x,
                        pointer<T>(op.weight), op.epsilon, grad_out, row_of<R>(op.grad_x.rows(begin, end)),
                        row_of<T>(op.rounded.defined() ? op.rounded.rows(begin, end) : Tensor()),
                        row_of<T>(op.normalised.defined() ? op.normalised.rows(begin, end) : Tensor()),
                        width);
          if (!op.grad_weight.defined()) continue;
          with_element_type(op.grad_weight.dtype(), [&](auto weight_element) {
            using W = decltype(weight_element);
            launch_kernel(context, weight_gradient<X, T, W>, static_cast<unsigned>(ceil_div(width, 32)), 1024,
                          0, x, grad_out, pointer<W>(op.grad_weight), end - begin, width);
          });
        }
      }
    });
  });
}

}  // namespace sl
