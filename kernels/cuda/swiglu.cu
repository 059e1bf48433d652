// The gated activation, and its gradient. With adapters on gate and up, rows of bf16 go through tensor cores
// (swiglu_tiles.cuh).
//
// Measured on one H100 80GB HBM3 (copy 3.0 TB/s): SwiGlu of 8,192 x 18,944 305 us (3.05 TB/s), its gradient
// 512 us (3.03). In a graph SwiGlu takes 1.3 us for 1 row, 2.5 for 64, 11 for 256.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/low_rank.cuh"
#include "kernels/cuda/swiglu_tiles.cuh"

namespace sl {
namespace {

using namespace cuda;

// What the storage dtype cannot show is not computed: with bf16, exp and the division are the fast ones (a
// few units in the last place of a float).
template <typename T>
__device__ inline float sigmoid(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __fdividef(1.0F, 1.0F + __expf(-x));
  } else {
    return 1.0F / (1.0F + expf(-x));
  }
}

template <typename T>
__device__ inline float activated(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return gate_of(x);
  } else {
    return x * sigmoid<T>(x);
  }
}

template <typename T, typename Adapters>
struct GatedActivation {
  T* gate_up;
  int64_t gate_up_stride;
  int64_t width;
  T* out;
  int64_t out_stride;
  Adapters adapters;
  bool keep;

  template <int N>
  __device__ void at(int64_t row, int64_t column) const {
    T* gate = gate_up + row * gate_up_stride + column;
    float g[N], u[N];
    load(g, gate);
    load(u, gate + width);
    if constexpr (adapted<Adapters>) {
      const RankRange range = adapters.range_of(row);
      for (int r = range.begin; r < range.end; r += 8) {
        add_low_rank(g, row, 0, r, column);
        add_low_rank(u, row, 1, r, width + column);
      }
      if (keep) {
        store(gate, g);
        store(gate + width, u);
#pragma unroll
        for (int i = 0; i < N; ++i) {  // the activation of what is kept
          g[i] = to_float(from_float<T>(g[i]));
          u[i] = to_float(from_float<T>(u[i]));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) u[i] *= activated<T>(g[i]);
    store(out + row * out_stride + column, u);
  }

  template <int N>
  __device__ void add_low_rank(float (&x)[N], int64_t row, int projection, int rank, int64_t output) const {
    float low[8];
    RankEight<N, T> b;
    load_low<N>(low, adapters.low_of(row, projection) + rank);
    b.fetch(adapters, rank, output);
    b.add(x, low);
  }
};

// d silu(g) / d g = s (1 + g (1 - s)), s = sigmoid(g). The results may take the places of gate_up and
// grad_out: a thread reads its elements of all three before it writes.
template <typename T>
struct GatedActivationBackward {
  const T* gate_up;
  int64_t gate_up_stride;
  int64_t width;
  const T* grad_out;
  int64_t grad_out_stride;
  T* grad;
  int64_t grad_stride;
  T* product;  // or null
  int64_t product_stride;

  template <int N>
  __device__ void at(int64_t row, int64_t column) const {
    const T* gate = gate_up + row * gate_up_stride + column;
    float g[N], u[N], gy[N], y[N];
    load(g, gate);
    load(u, gate + width);
    load(gy, grad_out + row * grad_out_stride + column);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float s = sigmoid<T>(g[i]), gate_i = g[i];
      y[i] = u[i] * activated<T>(gate_i);
      g[i] = gy[i] * u[i] * s * (1.0F + gate_i * (1.0F - s));
      u[i] = gy[i] * gate_i * s;
    }
    T* to = grad + row * grad_stride + column;
    store(to, g);
    store(to + width, u);
    if (product != nullptr) store(product + row * product_stride + column, y);
  }
};

void launch_tiles(const Context& context, const SwiGlu& op, const LowRankLayer<bf16>& layer) {
  const GatedTiles work = {.gate_up = pointer<bf16>(op.gate_up),
                           .gate_up_stride = op.gate_up.row_stride(),
                           .row_count = op.out.rows(),
                           .width = static_cast<int>(op.out.columns()),
                           .out = pointer<bf16>(op.out),
                           .out_stride = op.out.row_stride(),
                           .layer = layer,
                           .keep = op.keep};
  // A block takes several tiles of rows where there are enough blocks anyway: it reads b once for them.
  const int64_t tiles = ceil_div(work.row_count, GatedTiles::rows);
  const int64_t across = ceil_div(work.width, GatedTiles::columns * GatedTiles::warps);
  const int64_t each = std::max<int64_t>(1, tiles * across / (int64_t{16} * context.cuda->multiprocessors));
  launch_kernel(context, gated_tiles,
                dim3(static_cast<unsigned>(across), static_cast<unsigned>(ceil_div(tiles, each))),
                GatedTiles::threads, 0, work);
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
      for_each_element<n>(
          context, {dims['T'], width}, aligned,
          GatedActivation<T, Adapters>{pointer<T>(op.gate_up), op.gate_up.row_stride(), width,
                                       pointer<T>(op.out), op.out.row_stride(), adapters, op.keep});
    };
    if (!op.adapters.defined()) return launch_elements(NoAdapters{});
    const auto layer = layer_of<T>("SwiGlu", context, op.adapters, storage, dims['T'], 2 * width, 2);
    if constexpr (std::is_same_v<T, bf16>) {
      if (aligned) return launch_tiles(context, op, layer);
    }
    launch_elements(layer);
  });
}

template <>
void launch<Device::cuda>(const Context& context, const SwiGluBackward& op) {
  const DType storage = op.grad_out.dtype();
  const int64_t width = op.grad_out.columns();
  const Dims dims = match_shapes("SwiGluBackward", context.device,
                                 {{"gate_up", op.gate_up, "TG", storage},
                                  {"grad_out", op.grad_out, "TF", storage},
                                  {"grad_gate_up", op.grad_gate_up, "TG", storage},
                                  {"product", op.product, "TF", storage, true}},
                                 {{'G', 2 * width}});
  with_element_type(storage, [&](auto element) {
    using T = decltype(element);
    constexpr int n = elements_at_once<T>;
    const bool aligned =
        width % n == 0 && rows_aligned(n, {&op.gate_up, &op.grad_out, &op.grad_gate_up, &op.product});
    for_each_element<n>(context, {dims['T'], width}, aligned,
                        GatedActivationBackward<T>{pointer<T>(op.gate_up), op.gate_up.row_stride(), width,
                                                   pointer<T>(op.grad_out), op.grad_out.row_stride(),
                                                   pointer<T>(op.grad_gate_up), op.grad_gate_up.row_stride(),
                                                   op.product.defined() ? pointer<T>(op.product) : nullptr,
                                                   op.product.defined() ? op.product.row_stride() : 0});
  });
}

}  // namespace sl
