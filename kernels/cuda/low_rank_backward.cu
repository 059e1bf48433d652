// Both gradients of y = scale * low B^T from one reading of grad_out (T, O): those products of 8 or 16
// columns do nothing but read it. Queries, keys and values share a launch.
//
// A block takes 512 rows and a range of columns of one projection, 64 at a time. Warp w sums grad_low of its
// 64 rows in registers over all of these columns; grad_b of 16 of the 64 columns it sums over half of the
// rows. Sums of the blocks go to scratch, and a second kernel adds them up, in a fixed order.
//
// Measured on one H200 (copy 4.2 TB/s), by traces of LoRA training of qwen2-7b at 4,096 tokens: 97 MB a
// layer, o, down and the three in a launch each, 55 us (1.8 TB/s) without their waits for the kernel before,
// where a launch for each projection took 67: 4 or 5 turns of 64 columns a block, most of which is waiting
// for the first.
#include <algorithm>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/low_rank_sums.cuh"
#include "kernels/cuda/packed_warpgroup.cuh"
#include "kernels/cuda/paged_mma.cuh"
#include "kernels/low_rank_products.hpp"

namespace sl {
namespace cuda {
namespace {

constexpr int block_rows = 512, block_columns = 64, consumers = 256, copied_rows = 256;

template <int R>
struct LowRankStages {
  static constexpr int stages = 3;
  alignas(1024) bf16 grad_out[stages][block_rows][block_columns];  // as copies with 128-byte swizzle leave it
  alignas(128) bf16 b[stages][block_columns][R];
  float half[2][block_columns][R];  // of grad_b, from the warps of the lower rows
  uint64_t full[stages], empty[stages];
};

struct LowRankWork {
  struct Projection {
    const bf16* low;
    const bf16* b;
    int64_t low_stride, rows, outputs;
    float* grad_b;    // row groups, outputs, R
    float* grad_low;  // column groups, rows, R
    int first_block, column_groups;
  };
  CUtensorMap maps[LowRankJobs::most];  // of grad_out
  Projection projections[LowRankJobs::most];
  int count;
};

#if SL_HOPPER

template <int R>
__global__ void __launch_bounds__(consumers + 32, 1)
    low_rank_backward_kernel(const __grid_constant__ LowRankWork work) {
  using Stages = LowRankStages<R>;
  constexpr int N = R / 8;  // products of 8 columns
  auto& shared = shared_memory<Stages>();
  const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
  int projection = work.count - 1;
  while (static_cast<int>(blockIdx.x) < work.projections[projection].first_block) --projection;
  const LowRankWork::Projection& p = work.projections[projection];
  const int chunks = static_cast<int>(p.outputs) / block_columns, groups = p.column_groups;
  const int group = static_cast<int>(blockIdx.x) - p.first_block;
  const int first = chunks * group / groups, last = chunks * (group + 1) / groups;
  const int first_row = blockIdx.y * block_rows;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Stages::stages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], consumers);
    }
    fence_barrier_init();
  }
  __syncthreads();
  wait_for_previous();
  start_next();

  StageCursor<Stages::stages> stage;
  if (warp == consumers / 32) {
    if (lane != 0) return;
    for (int chunk = first; chunk < last; ++chunk, stage.next()) {
      uint64_t* full = &shared.full[stage.stage];
      barrier_wait(&shared.empty[stage.stage], stage.parity ^ 1);
      barrier_expect(full, sizeof(shared.grad_out[0]) + sizeof(shared.b[0]));
      for (int row = 0; row < block_rows; row += copied_rows)
        tma_load(shared.grad_out[stage.stage][row], &work.maps[projection], chunk * block_columns,
                 first_row + row, full);
      bulk_load(shared.b[stage.stage], p.b + int64_t{chunk} * block_columns * R, sizeof(shared.b[0]), full);
    }
    return;
  }

  // In the layouts of paged_mma.cuh lane = 4 g + t.
  const int g = lane / 4, t = 2 * (lane % 4);
  const int my_columns = warp % 4 * 16, half = warp / 4;
  uint32_t low[16][N][2];  // of this half's rows
#pragma unroll
  for (int k = 0; k < 16; ++k) {
#pragma unroll
    for (int i = 0; i < 2 * N; ++i) {
      const int64_t row = first_row + half * 256 + 16 * k + 8 * (i % 2) + t;
      const bf16* from = p.low + row * p.low_stride + 8 * (i / 2) + g;
      const float even = row < p.rows ? to_float(from[0]) : 0.0F;
      const float odd = row + 1 < p.rows ? to_float(from[p.low_stride]) : 0.0F;
      low[k][i / 2][i % 2] = paged::pack(even, odd);
    }
  }
  float grad_low[4][N][4] = {};

  for (int chunk = first; chunk < last; ++chunk, stage.next()) {
    barrier_wait(&shared.full[stage.stage], stage.parity);
    const uint32_t tile = shared_address(shared.grad_out[stage.stage]);
    const auto address = [&](int row, int eighth) { return tile + row * 128 + ((eighth ^ (row % 8)) << 4); };

    uint32_t b[4][N][2];
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int k = 0; k < 4; k += 2) {
        uint32_t r[4];
        paged::load_matrices_transposed(r, shared_address(&shared.b[stage.stage][16 * k + lane][8 * n]));
        b[k][n][0] = r[0], b[k][n][1] = r[1];
        b[k + 1][n][0] = r[2], b[k + 1][n][1] = r[3];
      }
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        uint32_t a[4];
        paged::load_matrices(a, address(64 * warp + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < N; ++n)
          paged::multiply_add(grad_low[m][n], a[0], a[1], a[2], a[3], b[k][n][0], b[k][n][1]);
      }
    }

    float grad_b[N][4] = {};
#pragma unroll
    for (int k = 0; k < 16; ++k) {
      uint32_t a[4];  // 16 columns x 16 rows
      paged::load_matrices_transposed(
          a, address(half * 256 + 16 * k + lane / 16 * 8 + lane % 8, my_columns / 8 + lane / 8 % 2));
#pragma unroll
      for (int n = 0; n < N; ++n)
        paged::multiply_add(grad_b[n], a[0], a[1], a[2], a[3], low[k][n][0], low[k][n][1]);
    }
    barrier_arrive(&shared.empty[stage.stage]);

    auto& other = shared.half[chunk % 2];
    const auto for_pairs = [&](auto&& f) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        f(my_columns + g, 8 * n + t, grad_b[n][0], grad_b[n][1]);
        f(my_columns + g + 8, 8 * n + t, grad_b[n][2], grad_b[n][3]);
      }
    };
    if (half == 1) {
      for_pairs([&](int column, int r, float x, float y) {
        *reinterpret_cast<float2*>(&other[column][r]) = make_float2(x, y);
      });
    }
    named_sync(1 + warp % 4,
               64);  // the two warps of these columns; what the next but one chunk overwrites is read
    if (half == 0) {
      float* sums = p.grad_b + (blockIdx.y * p.outputs + int64_t{chunk} * block_columns) * R;
      for_pairs([&](int column, int r, float x, float y) {
        const float2 rest = *reinterpret_cast<const float2*>(&other[column][r]);
        *reinterpret_cast<float2*>(sums + column * R + r) = make_float2(x + rest.x, y + rest.y);
      });
    }
  }

#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = first_row + 64 * warp + 16 * m + 8 * i + g;
      if (row >= p.rows) continue;
      float* sums = p.grad_low + (group * p.rows + row) * R + t;
#pragma unroll
      for (int n = 0; n < N; ++n)
        *reinterpret_cast<float2*>(sums + 8 * n) =
            make_float2(grad_low[m][n][2 * i], grad_low[m][n][2 * i + 1]);
    }
  }
}

#else

template <int R>
__global__ void low_rank_backward_kernel(const __grid_constant__ LowRankWork work) {}

#endif

template <int R>
bool fits(const LowRankBackward& op, int64_t rows) {
  return op.grad_out.dtype() == DType::bf16 && op.b.columns() == R && op.grad_out.rows() == rows &&
         rows > 0 && op.grad_out.columns() > 0 && op.grad_out.columns() % block_columns == 0 &&
         op.b.contiguous() && rows_begin_at(op.b, 16) &&
         mappable(op.grad_out.raw(), op.grad_out.row_stride() * 2) && rows_begin_at(op.grad_b, 16) &&
         rows_begin_at(op.grad_low, 8);
}

// The least number of chunks of columns a block with which no more blocks than `most` stand side by side.
int64_t chunks_a_block(std::span<const LowRankBackward> all, int64_t most) {
  for (int64_t each = 1;; ++each) {
    int64_t blocks = 0, largest = 0;
    for (const LowRankBackward& op : all) {
      const int64_t chunks = op.grad_out.columns() / block_columns;
      blocks += ceil_div(chunks, each);
      largest = std::max(largest, chunks);
    }
    if (blocks <= most || each >= largest) return each;
  }
}

// False: not for this kernel.
template <int R>
bool launch_together(const Context& context, std::span<const LowRankBackward> all) {
  const int64_t rows = all.front().grad_out.rows();
  if (all.size() > LowRankJobs::most ||
      !std::all_of(all.begin(), all.end(), [rows](const LowRankBackward& op) { return fits<R>(op, rows); }))
    return false;
  const int64_t row_groups = ceil_div(rows, block_rows);
  const int64_t each = chunks_a_block(all, context.cuda->multiprocessors / row_groups);
  auto* const scratch = static_cast<float*>(context.cuda->blas_workspace.data());
  float* next = scratch;
  int64_t blocks = 0;
  LowRankWork work = {};
  LowRankJob sums[LowRankJobs::most];
  for (const LowRankBackward& op : all) {
    const int64_t outputs = op.grad_out.columns(), column_groups = ceil_div(outputs / block_columns, each);
    const LowRankParts parts = {.grad_b = next,
                                .grad_low = next + row_groups * outputs * R,
                                .row_groups = static_cast<int>(row_groups),
                                .column_groups = static_cast<int>(column_groups),
                                .rows = rows,
                                .outputs = outputs};
    work.maps[work.count] = matrix_map(op.grad_out, copied_rows);
    work.projections[work.count] = {.low = pointer<bf16>(op.low),
                                    .b = pointer<bf16>(op.b),
                                    .low_stride = op.low.row_stride(),
                                    .rows = rows,
                                    .outputs = outputs,
                                    .grad_b = next,
                                    .grad_low = next + row_groups * outputs * R,
                                    .first_block = static_cast<int>(blocks),
                                    .column_groups = parts.column_groups};
    sums[work.count] = {.parts = parts,
                        .to = {.grad_b = {pointer<float>(op.grad_b)},
                               .grad_b_stride = {op.grad_b.row_stride()},
                               .grad_low = pointer<bf16>(op.grad_low),
                               .grad_low_stride = op.grad_low.row_stride(),
                               .b_scale = op.scale,
                               .low_scale = op.scale}};
    ++work.count;
    next += (row_groups * outputs + column_groups * rows) * R;
    blocks += column_groups;
  }
  if ((next - scratch) * int64_t{sizeof(float)} > context.cuda->blas_workspace.bytes()) return false;

  const auto kernel = low_rank_backward_kernel<R>;
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(sizeof(LowRankStages<R>))));
  launch_kernel(context, kernel, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(row_groups)),
                dim3(consumers + 32), sizeof(LowRankStages<R>), work);
  launch_low_rank_sums<R, 1>(context, {sums, all.size()});
  return true;
}

// How many groups share the sum of a row depends on the rows, so not where that is forbidden.
bool launch_together(const Context& context, std::span<const LowRankBackward> all) {
  if (context.cuda->compute_capability != 90 || context.deterministic) return false;
  return launch_together<8>(context, all) || launch_together<16>(context, all);
}

}  // namespace
}  // namespace cuda

template <>
void launch<Device::cuda>(const Context& context, const LowRankBackwards& op) {
  for (const LowRankBackward& one : op.all) (void)products_of(context, one);
  if (op.all.empty() || cuda::launch_together(context, op.all)) return;
  for (const LowRankBackward& one : op.all) {
    if (cuda::launch_together(context, {&one, 1})) continue;
    const LowRankProducts products = products_of(context, one);
    launch<Device::cuda>(context, products.grad_b);
    launch<Device::cuda>(context, products.grad_low);
  }
}

}  // namespace sl
