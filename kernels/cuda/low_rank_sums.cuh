// The second half of gradients of B and of x A^T (LowRankBackward), or of x A^T itself in the place of its
// gradient: parts of their sums, which blocks left in scratch, are added up in a fixed order.
#pragma once

#include <algorithm>
#include <span>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/paged_mma.cuh"

namespace sl::cuda {

// Of some projections with r numbers of the rank and as many outputs each; behind them, where there is one,
// that of another's A (r, outputs), transposed.
struct LowRankParts {
  const float* grad_b;    // row groups, matrices * outputs, r
  const float* grad_low;  // column groups, rows, projections * r
  int row_groups, column_groups;
  int64_t rows, outputs;
};

struct LowRankResults {
  float* grad_b[2];  // of each projection: outputs, r; added to
  int64_t grad_b_stride[2];
  float* grad_a;  // r, outputs; added to
  int64_t grad_a_stride;
  bf16* grad_low;  // rows, projections * r
  int64_t grad_low_stride;
  float b_scale, low_scale;
};

struct LowRankJob {
  LowRankParts parts;
  LowRankResults to;
};
struct LowRankJobs {
  static constexpr size_t most = 3;  // queries, keys and values
  LowRankJob all[most];
};

__device__ inline float4 sum_of_groups(const float4* parts, int64_t pitch, int groups) {
  float4 sum = {};
#pragma unroll 16
  for (int i = 0; i < groups; ++i) {
    const float4 x = parts[i * pitch];
    sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
  }
  return sum;
}

// Four numbers a thread: first those of grad_b and grad_a, then those of grad_low. The blocks of one y have
// one job.
template <int R, int Projections, bool WithA>
__global__ void __launch_bounds__(128) low_rank_sum_kernel(const __grid_constant__ LowRankJobs jobs) {
  wait_for_previous();
  start_next();
  const auto& [parts, to] = jobs.all[blockIdx.y];
  constexpr int low_fours = Projections * R / 4;
  const int64_t of_b = (Projections + WithA) * parts.outputs * R / 4, of_low = parts.rows * low_fours;
  int64_t i = blockIdx.x * int64_t{128} + threadIdx.x;
  if (i < of_b) {
    const float4 sum =
        sum_of_groups(reinterpret_cast<const float4*>(parts.grad_b) + i, of_b, parts.row_groups);
    const int matrix = static_cast<int>(i / (R / 4) / parts.outputs), r = i % (R / 4) * 4;
    const int64_t output = i / (R / 4) - matrix * parts.outputs;
    if (WithA && matrix == Projections) {
      float* out = to.grad_a + r * to.grad_a_stride + output;
      out[0] += sum.x, out[to.grad_a_stride] += sum.y;
      out[2 * to.grad_a_stride] += sum.z, out[3 * to.grad_a_stride] += sum.w;
      return;
    }
    auto* out = reinterpret_cast<float4*>(to.grad_b[matrix] + output * to.grad_b_stride[matrix] + r);
    float4 x = *out;
    x.x += to.b_scale * sum.x, x.y += to.b_scale * sum.y, x.z += to.b_scale * sum.z,
        x.w += to.b_scale * sum.w;
    *out = x;
    return;
  }
  i -= of_b;
  if (i >= of_low) return;
  const float4 sum =
      sum_of_groups(reinterpret_cast<const float4*>(parts.grad_low) + i, of_low, parts.column_groups);
  *reinterpret_cast<uint2*>(to.grad_low + i / low_fours * to.grad_low_stride + i % low_fours * 4) =
      make_uint2(paged::pack(to.low_scale * sum.x, to.low_scale * sum.y),
                 paged::pack(to.low_scale * sum.z, to.low_scale * sum.w));
}

template <int R, int Projections, bool WithA = false>
void launch_low_rank_sums(const Context& context, std::span<const LowRankJob> all) {
  require(all.size() <= LowRankJobs::most, "too many sums of low-rank gradients at once");
  LowRankJobs jobs = {};
  int64_t most_items = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    const LowRankParts& parts = all[i].parts;
    const int64_t items = ((Projections + WithA) * parts.outputs + Projections * parts.rows) * R / 4;
    most_items = std::max(most_items, items);
    jobs.all[i] = all[i];
  }
  launch_kernel(context, low_rank_sum_kernel<R, Projections, WithA>,
                dim3(static_cast<unsigned>(ceil_div(most_items, 128)), static_cast<unsigned>(all.size())),
                dim3(128), 0, jobs);
}

// Whether the address of every row is a multiple of so many bytes.
inline bool rows_begin_at(const Tensor& tensor, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(tensor.raw()) % static_cast<uintptr_t>(bytes) == 0 &&
         tensor.row_stride() * size_of(tensor.dtype()) % bytes == 0;
}

}  // namespace sl::cuda
