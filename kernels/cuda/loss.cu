// Cross-entropy over a slice of the vocabulary: what its rank contributes to the loss, and the gradient.
//
// The statistics read a row once: each thread keeps the largest number so far and the sum of exp(x -
// largest), rescaled when the largest grows (Milakov and Gimelshein 2018); 16 numbers share one rescaling.
//
// Measured on one H100 80GB HBM3, 152,064 columns: statistics of 64 rows 21 us, of 512 126 us (2.47 TB/s), of
// 1,024 208 us (3.00 TB/s); the gradient of 1,024 rows 414 us (3.01 TB/s). One block a row: fewer than 132
// rows leave multiprocessors idle.
#include "kernels/cuda/rows.cuh"

namespace sl {
namespace {

using namespace cuda;

constexpr int stats_threads = 512;

struct SumOfExp {  // the sum of exp(x - largest)
  float largest = -INFINITY, sum = 0.0F;
};

__device__ SumOfExp joined(SumOfExp a, SumOfExp b) {
  const float largest = fmaxf(a.largest, b.largest);
  if (largest == -INFINITY) return {largest, a.sum + b.sum};
  return {largest, a.sum * __expf(a.largest - largest) + b.sum * __expf(b.largest - largest)};
}

template <int N>
__global__ void __launch_bounds__(stats_threads)
    cross_entropy_stats(const float* logits, int64_t stride, int64_t vocabulary, const int32_t* targets,
                        int64_t first_row, float* row_max, float* row_sum, float* target_logit) {
  wait_for_previous();
  start_next();
  constexpr int batch = 4;  // loads at a time
  const int64_t row = blockIdx.x;
  const float* x = logits + row * stride;
  SumOfExp mine;
  for (int64_t begin = int64_t{threadIdx.x} * N; begin < vocabulary; begin += batch * stats_threads * N) {
    float values[batch][N];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int64_t column = begin + int64_t{i} * stats_threads * N;
      if (column + N <= vocabulary) {
        load(values[i], x + column);
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j) values[i][j] = column + j < vocabulary ? x[column + j] : -INFINITY;
      }
    }
    float largest = mine.largest;
#pragma unroll
    for (int i = 0; i < batch; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) largest = fmaxf(largest, values[i][j]);
    }
    if (largest == -INFINITY) continue;
    mine.sum *= __expf(mine.largest - largest);
#pragma unroll
    for (int i = 0; i < batch; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) mine.sum += __expf(values[i][j] - largest);
    }
    mine.largest = largest;
  }
  const auto over_warp = [](SumOfExp part) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
      part = joined(part, {__shfl_xor_sync(0xFFFFFFFFU, part.largest, offset),
                           __shfl_xor_sync(0xFFFFFFFFU, part.sum, offset)});
    return part;
  };
  constexpr int warps = stats_threads / 32;
  __shared__ SumOfExp of_warps[warps];
  mine = over_warp(mine);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const SumOfExp total = over_warp(threadIdx.x < warps ? of_warps[threadIdx.x] : SumOfExp{});
  if (threadIdx.x != 0) return;
  row_max[row] = total.largest;
  row_sum[row] = total.sum;
  const int64_t target = targets[row] - first_row;
  target_logit[row] = targets[row] >= 0 && target >= 0 && target < vocabulary ? x[target] : 0.0F;
}

template <typename T>
struct SoftmaxMinusTarget {
  const float* logits;
  int64_t stride;
  T* out;
  int64_t out_stride;
  const int32_t* targets;
  int64_t first_row;
  const float *log_sum_exp, *weights;

  template <int N>
  __device__ void at(int64_t row, int64_t column) const {
    const float normaliser = log_sum_exp[row], weight = weights[row];
    const int64_t target = targets[row] < 0 ? -1 : targets[row] - first_row;
    float x[N];
    load(x, logits + row * stride + column);
#pragma unroll
    for (int i = 0; i < N; ++i)
      x[i] = weight * (__expf(x[i] - normaliser) - (column + i == target ? 1.0F : 0.0F));
    store(out + row * out_stride + column, x);
  }
};

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const CrossEntropyStats& op) {
  const Dims dims = match_shapes("CrossEntropyStats", context.device,
                                 {{"logits", op.logits, "RV"},
                                  {"targets", op.targets, "R", DType::i32},
                                  {"row_max", op.row_max, "R"},
                                  {"row_sum", op.row_sum, "R"},
                                  {"target_logit", op.target_logit, "R"}});
  launch_kernel(context, rows_aligned(4, {&op.logits}) ? cross_entropy_stats<4> : cross_entropy_stats<1>,
                static_cast<unsigned>(dims['R']), stats_threads, 0, op.logits.data<float>(),
                op.logits.row_stride(), dims['V'], op.targets.data<int32_t>(), op.first_row,
                op.row_max.data<float>(), op.row_sum.data<float>(), op.target_logit.data<float>());
}

template <>
void launch<Device::cuda>(const Context& context, const CrossEntropyGradient& op) {
  const Dims dims = match_shapes("CrossEntropyGradient", context.device,
                                 {{"logits", op.logits, "RV"},
                                  {"targets", op.targets, "R", DType::i32},
                                  {"log_sum_exp", op.log_sum_exp, "R"},
                                  {"weights", op.weights, "R"},
                                  {"out", op.out, "RV", op.out.dtype()}});
  with_element_type(op.out.dtype(), [&](auto element) {
    using T = decltype(element);
    constexpr int n = elements_at_once<T>;
    for_each_element<n>(
        context, {dims['R'], dims['V']}, rows_aligned(n, {&op.logits, &op.out}),
        SoftmaxMinusTarget<T>{op.logits.data<float>(), op.logits.row_stride(), pointer<T>(op.out),
                              op.out.row_stride(), op.targets.data<int32_t>(), op.first_row,
                              op.log_sum_exp.data<float>(), op.weights.data<float>()});
  });
}

}  // namespace sl
