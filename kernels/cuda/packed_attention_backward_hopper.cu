// Hopper's path of PackedAttentionBackward: which calls it takes, the kernel of delta, tensor maps, launches.
//
// Measured on one H100 80GB HBM3, 28 query and 4 key-value heads of 128, causal, in TFLOP/s. All: 2.5 times
// the operations of the forward pass; keys and queries: of the 4 and 3 products that they really do.
//                             1 x 4,096   1 x 8,192   1 x 16,384   4 x 4,096   32 x 512
//   keys                            375         697          706         658        367
//   queries                         672         717          749         664        288
//   all                             318         493          511         454        212
//   cuDNN / FlashAttention-2  365 / 218                538 / 300
// That is without parts. With one short sequence there are fewer tiles of keys (32 x 4 of 4,096 rows) than
// multiprocessors, from all of its queries long to hardly any; with the group's heads shared out to parts,
// all at 1,024, 2,048 and 4,096 rows: 100 -> 205, 194 -> 325, 345 -> 453. The tensor cores are busy 82 %
// (keys) and 87 % (queries) of the time at the clock that power allows; the 7 products instead of 5 are what
// is left to cuDNN. Tried, keys at 16,384 rows: addresses of tiles not in uniform registers and statistics
// read through generic addresses 508; both mended 685; statistics read before waiting for the products 706.
// Warpgroups in turn: -7
// %. Two stages: -13 %; four: as three. Heads outside and query blocks inside: twice the reads from device
// memory. Taking the next tile at the beginning of one instead of at its end: +20 % of time at 8,192 rows,
// since the blocks with the longest tiles then have a second one each. Queries: 96 keys a step -1 %, 64 -5 %,
// 112 spills.
#include <algorithm>

#include "kernels/cuda/packed_attention.hpp"
#include "kernels/cuda/packed_backward_keys.cuh"
#include "kernels/cuda/packed_backward_queries.cuh"
#include "kernels/cuda/paged_mma.cuh"

namespace sl::cuda {
namespace {

__device__ PackedQueue keys_queue, queries_queue;

// delta(row, head) = out . grad_out, into the first 4 bytes of that row's head in grad_qkv. D / 8 threads a
// head.
template <int D>
__global__ void __launch_bounds__(256)
    packed_delta_kernel(const bf16* out, const bf16* grad_out, bf16* grad_qkv, int64_t out_stride,
                        int64_t grad_out_stride, int64_t grad_qkv_stride, int64_t rows, int query_heads) {
  wait_for_previous();
  start_next();
  const int per_row = query_heads * (D / 8);
  const int64_t item = blockIdx.x * int64_t{256} + threadIdx.x;
  const int64_t row = item / per_row;
  const int column = static_cast<int>(item % per_row) * 8;
  float sum = 0.0F;
  if (row < rows) {
    const uint4 a = *reinterpret_cast<const uint4*>(out + row * out_stride + column);
    const uint4 b = *reinterpret_cast<const uint4*>(grad_out + row * grad_out_stride + column);
    const auto* x = reinterpret_cast<const __nv_bfloat162*>(&a);
    const auto* y = reinterpret_cast<const __nv_bfloat162*>(&b);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 u = __bfloat1622float2(x[i]), v = __bfloat1622float2(y[i]);
      sum += u.x * v.x + u.y * v.y;
    }
  }
#pragma unroll
  for (int step = D / 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, step);
  if (row < rows && column % D == 0)
    *reinterpret_cast<float*>(grad_qkv + row * grad_qkv_stride + column) = sum;
}

template <class F, class Kernel>
void launch_backward(const Context& context, Kernel kernel, int64_t work, const CUtensorMap (&maps)[3],
                     const PackedBackwardParameters& p) {
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(F::shared_bytes)));
  const int64_t blocks = std::min<int64_t>(work, context.cuda->multiprocessors);
  launch_kernel(context, kernel, dim3(static_cast<unsigned>(blocks)), dim3(F::threads), F::shared_bytes,
                maps[0], maps[1], maps[2], p);
}

// The row of a matrix as chunks of 64 columns: one copy brings all chunks of a head of D.
template <int D>
CUtensorMap head_map(const Tensor& matrix, int64_t box_rows) {
  return make_tensor_map(
      matrix.raw(),
      {{64, 64}, {matrix.rows(), box_rows, matrix.row_stride() * 2}, {matrix.columns() / 64, D / 64, 128}});
}

PackedQueue* address_of(PackedQueue& queue) {
  void* address = nullptr;
  SL_CUDA(cudaGetSymbolAddress(&address, queue));
  return static_cast<PackedQueue*>(address);
}

PackedBackwardParameters backward_parameters(const PackedAttentionBackward& op, const PackedShape& shape) {
  PackedBackwardParameters p = {};
  p.offsets = pointer<int32_t>(op.offsets);
  p.log_sum_exp = pointer<float>(op.log_sum_exp);
  p.grad_qkv = pointer<bf16>(op.grad_qkv);
  p.log_sum_exp_stride = op.log_sum_exp.row_stride();
  p.grad_qkv_stride = op.grad_qkv.row_stride();
  p.sequences = static_cast<int>(shape.sequences);
  p.query_heads = static_cast<int>(shape.query_heads);
  p.key_heads = static_cast<int>(shape.key_heads);
  p.section_bytes = 16 << 20;
  p.parts = 1;
  p.rows = shape.rows;
  p.scale = op.scale;
  return p;
}

template <int D>
void launch_delta(const Context& context, const PackedAttentionBackward& op, const PackedShape& shape) {
  const int64_t threads = shape.rows * shape.query_heads * (D / 8);
  launch_kernel(context, packed_delta_kernel<D>, dim3(static_cast<unsigned>(ceil_div(threads, 256))),
                dim3(256), 0, pointer<bf16>(op.out), pointer<bf16>(op.grad_out), pointer<bf16>(op.grad_qkv),
                op.out.row_stride(), op.grad_out.row_stride(), op.grad_qkv.row_stride(), shape.rows,
                shape.query_heads);
}

// Eight gradients of keys and values: those of the parts, added up.
__global__ void __launch_bounds__(256) sum_parts_kernel(const PackedBackwardParameters p, int width) {
  wait_for_previous();
  start_next();
  const int64_t at = (blockIdx.x * int64_t{256} + threadIdx.x) * 8, all = p.rows * width;
  if (at >= all) return;
  float sum[8] = {};
  for (int part = 0; part < p.parts; ++part) {
    const auto* from = reinterpret_cast<const float4*>(p.part_sums + part * all + at);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 x = from[i];
      sum[4 * i] += x.x, sum[4 * i + 1] += x.y, sum[4 * i + 2] += x.z, sum[4 * i + 3] += x.w;
    }
  }
  const int64_t keys_begin =
      p.grad_qkv_stride * (at / width) + int64_t{width} / 2 / p.key_heads * p.query_heads;
  *reinterpret_cast<uint4*>(p.grad_qkv + keys_begin + at % width) =
      make_uint4(paged::pack(sum[0], sum[1]), paged::pack(sum[2], sum[3]), paged::pack(sum[4], sum[5]),
                 paged::pack(sum[6], sum[7]));
}

template <class F>
void launch_keys(const Context& context, const PackedAttentionBackward& op, const PackedShape& shape) {
  PackedBackwardParameters p = backward_parameters(op, shape);
  p.queue = address_of(keys_queue);
  // The tiles of one sequence are between all and hardly any of its queries long: three pieces for each
  // multiprocessor level that out.
  const int64_t tiles = shape.most_tiles(F::rows) * shape.key_heads, width = 2 * shape.key_heads * F::D;
  const Buffer& scratch = context.cuda->blas_workspace;
  const int64_t room = scratch.bytes() / (shape.rows * width * int64_t{sizeof(float)});
  p.parts = static_cast<int>(std::clamp<int64_t>(3 * context.cuda->multiprocessors / tiles, 1,
                                                 std::min(shape.group(), std::max<int64_t>(room, 1))));
  p.part_sums = static_cast<float*>(scratch.data());
  launch_backward<F>(context, packed_backward_keys_kernel<F>, tiles * p.parts,
                     {head_map<F::D>(op.qkv, F::rows), head_map<F::D>(op.qkv, F::queries),
                      head_map<F::D>(op.grad_out, F::queries)},
                     p);
  if (p.parts == 1) return;
  launch_kernel(context, sum_parts_kernel, dim3(static_cast<unsigned>(ceil_div(shape.rows * width / 8, 256))),
                dim3(256), 0, p, static_cast<int>(width));
}

template <class F>
void launch_queries(const Context& context, const PackedAttentionBackward& op, const PackedShape& shape) {
  PackedBackwardParameters p = backward_parameters(op, shape);
  p.queue = address_of(queries_queue);
  launch_backward<F>(
      context, packed_backward_queries_kernel<F>, shape.most_tiles(F::rows) * shape.query_heads,
      {head_map<F::D>(op.qkv, F::rows), head_map<F::D>(op.grad_out, F::rows), head_map<F::D>(op.qkv, F::N)},
      p);
}

template <int D>
void launch_all(const Context& context, const PackedAttentionBackward& op, const PackedShape& shape) {
  launch_delta<D>(context, op, shape);
  launch_keys<PackedBackwardKeys<D, 3>>(context, op, shape);
  launch_queries<PackedBackwardQueries<D, 80, 3, 2>>(context, op, shape);
}

}  // namespace

bool packed_attention_backward_hopper(const Context& context, const PackedAttentionBackward& op,
                                      const PackedShape& shape) {
  if (context.cuda->compute_capability != 90 || op.qkv.dtype() != DType::bf16) return false;
  for (const Tensor* matrix : {&op.qkv, &op.out, &op.grad_out, &op.grad_qkv})
    if (!mappable(matrix->raw(), matrix->row_stride() * 2)) return false;
  if (shape.head_dim == 128) {
    launch_all<128>(context, op, shape);
  } else if (shape.head_dim == 64) {
    launch_all<64>(context, op, shape);
  } else {
    return false;
  }
  return true;
}

}  // namespace sl::cuda
