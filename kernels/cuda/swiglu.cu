// The gated activation. With adapters on gate and up, rows of bf16 go through tensor cores
// (swiglu_tiles.cuh).
//
// Measured on one H100 80GB HBM3 (copy 3.0 TB/s): 8,192 x 18,944 305 us (3.05 TB/s). In a graph 1.3 us for 1
// row, 2.5 for 64, 11 for 256.
#include "kernels/cuda/swiglu.cuh"

#include <algorithm>

#include "kernels/cuda/swiglu_tiles.cuh"

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

template <int Stages>
void launch_tiles(const Context& context, const GatedForward& work, int64_t across, int64_t blocks) {
  constexpr size_t bytes = sizeof(CopiesAhead<Stages, GatedForward::pieces>);
  const auto kernel = gated_forward<Stages>;
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  launch_kernel(context, kernel, dim3(static_cast<unsigned>(across), static_cast<unsigned>(blocks)),
                GatedTiles::threads, bytes, work);
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
  if (each == 1) return launch_tiles<2>(context, work, across, blocks);
  launch_tiles<4>(context, work, across, blocks);
}

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const SwiGlu& op) {
  const DType storage = op.out.dtype();
  const int64_t width = op.out.columns();
  const Dims dims = match_shapes("SwiGlu", context.device,
                                 {{"gate_up", op.gate_up, "TG", storage}, {"out", op.out, "TF", storage}},
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
