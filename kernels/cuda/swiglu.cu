// The gated activation. With adapters on gate and up, rows of bf16 go through tensor cores
// (swiglu_tiles.cuh).
//
// Measured on one H100 80GB HBM3 (copy 3.0 TB/s): 8,192 x 18,944 305 us (3.05 TB/s). In a graph 1.3 us for 1
// row, 2.5 for 64, 11 for 256. With adapters 4,096 x 18,944 178 us (2.5 TB/s), with down's low-rank numbers
// 220; these on one H200 (copy 4.2 TB/s), by ncu, 174 us, and 142 (3.3 TB/s) since no ranges are looked at
// and the sums begin with gate and up.
#include "kernels/cuda/swiglu.cuh"

#include <algorithm>

#include "kernels/cuda/low_rank_sums.cuh"
#include "kernels/cuda/swiglu_tiles.cuh"
#include "kernels/low_rank_products.hpp"

namespace sl {
namespace {

using namespace cuda;

template <typename T, typename Adapters>
struct GatedActivation {
  GateUp<T, Adapters> gate_up;
  T* out;
  int64_t out_stride;

  template <int N>
  __device__ void at(int64_t row, int64_t column) const {
    float gate[N], up[N];
    gate_up.load_both(gate, up, row, column);
#pragma unroll
    for (int i = 0; i < N; ++i) up[i] *= activated<T>(gate[i]);
    store(out + row * out_stride + column, up);
  }
};

template <int Stages, int DownRank>
void launch_tiles(const Context& context, const GatedForward& work, int64_t across, int64_t blocks) {
  constexpr size_t bytes = sizeof(GatedForwardShared<Stages, DownRank>);
  const auto kernel = gated_forward<Stages, DownRank>;
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  launch_kernel(context, kernel, dim3(static_cast<unsigned>(across), static_cast<unsigned>(blocks)),
                GatedTiles::threads, bytes, work);
}

template <int DownRank>
void launch_with_down(const Context& context, const SwiGlu& op, GatedForward work, int64_t across,
                      int64_t blocks) {
  work.down_a = pointer<bf16>(op.down_a);
  work.down_a_stride = op.down_a.row_stride();
  work.down_low = static_cast<float*>(context.cuda->blas_workspace.data());
  launch_tiles<4, DownRank>(context, work, across, blocks);
  const LowRankJob sums = {
      .parts = {.grad_low = work.down_low, .column_groups = static_cast<int>(across), .rows = work.row_count},
      .to = {.grad_low = pointer<bf16>(op.down_low),
             .grad_low_stride = op.down_low.row_stride(),
             .low_scale = 1.0F}};
  launch_low_rank_sums<DownRank, 1>(context, {&sums, 1});
}

void launch_tiles(const Context& context, const SwiGlu& op, const LowRankLayer<bf16>& layer) {
  const GatedForward work = {.gate_up = pointer<bf16>(op.gate_up),
                             .gate_up_stride = op.gate_up.row_stride(),
                             .row_count = op.out.rows(),
                             .width = static_cast<int>(op.out.columns()),
                             .out = pointer<bf16>(op.out),
                             .out_stride = op.out.row_stride(),
                             .layer = layer};
  // A block takes several tiles of rows where there are enough blocks anyway: it reads b once for them.
  const int64_t tiles = ceil_div(work.row_count, GatedTiles::rows);
  const int64_t across = ceil_div(work.width, GatedTiles::columns * GatedTiles::warps);
  const int64_t each = std::max<int64_t>(1, tiles * across / (int64_t{16} * context.cuda->multiprocessors));
  const int64_t blocks = ceil_div(tiles, each);
  const int64_t rank = op.down_a.defined() ? op.down_a.rows() : 0;
  const bool room =
      across * work.row_count * rank * int64_t{sizeof(float)} <= context.cuda->blas_workspace.bytes();
  // Whether there is room depends on the rows, and a row's bits must not where that is forbidden.
  const bool with_down = context.cuda->compute_capability == 90 && !context.deterministic && room &&
                         rows_aligned(8, {&op.down_a}) && rank == layer.rank && rows_begin_at(op.down_low, 8);
  if (with_down && rank == 8) return launch_with_down<8>(context, op, work, across, blocks);
  if (with_down && rank == 16) return launch_with_down<16>(context, op, work, across, blocks);
  if (each == 1) {
    launch_tiles<2, 0>(context, work, across, blocks);
  } else {
    launch_tiles<4, 0>(context, work, across, blocks);
  }
  launch_down_low<Device::cuda>(context, op);
}

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const SwiGlu& op) {
  const DType storage = op.out.dtype();
  const int64_t width = op.out.columns();
  const Dims dims = match_shapes("SwiGlu", context.device,
                                 {{"gate_up", op.gate_up, "TG", storage},
                                  {"out", op.out, "TF", storage},
                                  {"down_a", op.down_a, "RF", storage, true},
                                  {"down_low", op.down_low, "TR", storage, true}},
                                 {{'G', 2 * width}});
  with_element_type(storage, [&](auto element) {
    using T = decltype(element);
    constexpr int n = elements_at_once<T>;
    const bool aligned =
        width % n == 0 && rows_aligned(n, {&op.gate_up, &op.out}) && rows_aligned(8, op.adapters);
    const auto launch_elements = [&](const auto& adapters) {
      using Adapters = std::decay_t<decltype(adapters)>;
      const GateUp<T, Adapters> gate_up = {pointer<T>(op.gate_up), op.gate_up.row_stride(), width, adapters};
      for_each_element<n>(context, {dims['T'], width}, aligned,
                          GatedActivation<T, Adapters>{gate_up, pointer<T>(op.out), op.out.row_stride()});
      launch_down_low<Device::cuda>(context, op);
    };
    if (!op.adapters.defined()) return launch_elements(NoAdapters{});
    const auto layer = layer_of<T>("SwiGlu", context, op.adapters, storage, dims['T'], 2 * width, 2);
    if constexpr (std::is_same_v<T, bf16>) {
      if (aligned) return launch_tiles(context, op, layer);
    }
    launch_elements(layer);
  });
}

}  // namespace sl
