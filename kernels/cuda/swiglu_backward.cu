// The gradient of the gated activation. With an adapter of rank 8 or 16 on gate and up, rows of bf16 give
// that adapter's gradients on the way (swiglu_backward_tiles.cuh).
//
// Measured on one H100 80GB HBM3 (copy 3.0 TB/s), without an adapter: 8,192 x 18,944 512 us (3.03 TB/s); with
// one of rank 8 and all its gradients 4,096 x 18,944 342 us (2.3 TB/s).
#include <algorithm>

#include "kernels/cuda/low_rank_sums.cuh"
#include "kernels/cuda/swiglu.cuh"
#include "kernels/cuda/swiglu_backward_tiles.cuh"
#include "kernels/low_rank_products.hpp"

namespace sl {
namespace {

using namespace cuda;

// d silu(g) / d g = s (1 + g (1 - s)), s = sigmoid(g). The results may take the places of gate_up and
// grad_out: a thread reads its elements of all three before it writes.
template <typename T, typename Adapters>
struct GatedActivationBackward {
  GateUp<T, Adapters> gate_up;
  const T* grad_out;
  int64_t grad_out_stride;
  T* grad;
  int64_t grad_stride;
  T* product;  // or null
  int64_t product_stride;

  template <int N>
  __device__ void at(int64_t row, int64_t column) const {
    float g[N], u[N], gy[N], y[N];
    gate_up.load_both(g, u, row, column);
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
    store(to + gate_up.width, u);
    if (product != nullptr) store(product + row * product_stride + column, y);
  }
};

// Among how many blocks the rows are shared out, where `across` blocks stand side by side and `places` run at
// once: as many as fill them evenly in one to three turns. Few, as each leaves a sum of its own.
int64_t row_groups(int64_t across, int64_t places) {
  int64_t best = 1;
  double best_use = 0.0;
  for (int64_t turns = 1; turns <= 3; ++turns) {
    const int64_t groups = turns * places / across;
    const double use = static_cast<double>(groups * across) / static_cast<double>(turns * places);
    if (use > best_use + 0.02) best = groups, best_use = use;
  }
  return std::max<int64_t>(best, 1);
}

template <int R>
bool launch_tiles(const Context& context, const SwiGluBackward& op, const LowRankLayer<bf16>& layer) {
  const int64_t width = op.grad_out.columns();
  GatedBackward work = {.gate_up = pointer<bf16>(op.gate_up),
                        .gate_up_stride = op.gate_up.row_stride(),
                        .grad_out = pointer<bf16>(op.grad_out),
                        .grad_out_stride = op.grad_out.row_stride(),
                        .grad = pointer<bf16>(op.grad_gate_up),
                        .grad_stride = op.grad_gate_up.row_stride(),
                        .width = static_cast<int>(width),
                        .layer = layer,
                        .down_grad_low = pointer<bf16>(op.down_grad_low),
                        .down_grad_low_stride = op.down_grad_low.row_stride()};
  LowRankResults results = {.grad_b = {pointer<float>(op.gate.grad_b), pointer<float>(op.up.grad_b)},
                            .grad_b_stride = {op.gate.grad_b.row_stride(), op.up.grad_b.row_stride()},
                            .grad_a = pointer<float>(op.down_grad_a),
                            .grad_a_stride = op.down_grad_a.row_stride(),
                            .grad_low = pointer<bf16>(op.gate.grad_low),
                            .grad_low_stride = op.gate.grad_low.row_stride(),
                            .b_scale = op.gate.scale,
                            .low_scale = 1.0F};  // it is in layer.b

  // As many rows at once as scratch has room for sums of.
  const Buffer& scratch = context.cuda->blas_workspace;
  const int64_t across = ceil_div(width, GatedTiles::columns * GatedTiles::warps);
  const int64_t most_blocks =
      std::min(row_groups(across, int64_t{R == 8 ? 2 : 1} * context.cuda->multiprocessors),
               ceil_div(op.grad_out.rows(), GatedTiles::rows));
  const int64_t b_floats = most_blocks * GatedBackward::matrices * width * R;
  const int64_t most_rows = (scratch.bytes() / int64_t{sizeof(float)} - b_floats) / (across * 2 * R);
  const int64_t rows_at_once = most_rows / GatedTiles::rows * GatedTiles::rows;
  if (rows_at_once <= 0) return false;
  auto* sums_of_b = static_cast<float*>(scratch.data());
  work.grad_b = sums_of_b;
  work.grad_low = sums_of_b + b_floats;
  const auto kernel = gated_backward<R>;
  constexpr size_t bytes = sizeof(GatedBackwardShared<R>);
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));

  for (int64_t row = 0; row < op.grad_out.rows(); row += rows_at_once) {
    work.row_count = std::min(rows_at_once, op.grad_out.rows() - row);
    const int64_t blocks = std::min(most_blocks, ceil_div(work.row_count, GatedTiles::rows));
    launch_kernel(context, kernel, dim3(static_cast<unsigned>(across), static_cast<unsigned>(blocks)),
                  GatedTiles::threads, bytes, work);
    const LowRankJob sums = {.parts = {.grad_b = work.grad_b,
                                       .grad_low = work.grad_low,
                                       .row_groups = static_cast<int>(blocks),
                                       .column_groups = static_cast<int>(across),
                                       .rows = work.row_count,
                                       .outputs = width},
                             .to = results};
    launch_low_rank_sums<R, 2, true>(context, {&sums, 1});
    work.gate_up += rows_at_once * work.gate_up_stride;
    work.grad_out += rows_at_once * work.grad_out_stride;
    work.grad += rows_at_once * work.grad_stride;
    work.layer.low += rows_at_once * work.layer.low_stride;
    work.down_grad_low += rows_at_once * work.down_grad_low_stride;
    results.grad_low += rows_at_once * results.grad_low_stride;
  }
  return true;
}

// False: not for these kernels. How many blocks share the sum of B's gradient depends on the rows, so not
// where that is forbidden.
bool launch_tiles(const Context& context, const SwiGluBackward& op, const LowRankLayer<bf16>& layer) {
  const LowRankBackward &gate = op.gate, &up = op.up;
  if (context.cuda->compute_capability != 90 || context.deterministic || !gate.defined() || !up.defined() ||
      !op.down_grad_a.defined())
    return false;
  const int64_t rank = gate.b.columns();
  const auto of_adapters = [&](const LowRankBackward& gradient, int64_t projection) {
    const bf16* low = layer.low + projection * rank;
    return gradient.b.columns() == rank && layer.rank == rank && pointer<bf16>(gradient.low) == low &&
           gradient.low.row_stride() == layer.low_stride && gradient.scale == gate.scale &&
           pointer<bf16>(gradient.grad_low) == pointer<bf16>(gate.grad_low) + projection * rank &&
           gradient.grad_low.row_stride() == gate.grad_low.row_stride() &&
           rows_begin_at(gradient.grad_low, 8) && rows_begin_at(gradient.grad_b, 16);
  };
  if (!of_adapters(gate, 0) || !of_adapters(up, 1) || op.down_grad_low.columns() != rank ||
      !rows_begin_at(op.down_grad_low, 4))
    return false;
  return rank == 8 ? launch_tiles<8>(context, op, layer) : rank == 16 && launch_tiles<16>(context, op, layer);
}

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const SwiGluBackward& op) {
  const DType storage = op.grad_out.dtype();
  const int64_t width = op.grad_out.columns();
  const Dims dims = match_shapes("SwiGluBackward", context.device,
                                 {{"gate_up", op.gate_up, "TG", storage},
                                  {"grad_out", op.grad_out, "TF", storage},
                                  {"grad_gate_up", op.grad_gate_up, "TG", storage},
                                  {"product", op.product, "TF", storage, true},
                                  {"down_grad_low", op.down_grad_low, "TR", storage, true},
                                  {"down_grad_a", op.down_grad_a, "RF", DType::f32, true}},
                                 {{'G', 2 * width}});
  if (dims['T'] == 0) return;
  with_element_type(storage, [&](auto element) {
    using T = decltype(element);
    constexpr int n = elements_at_once<T>;
    const bool aligned = width % n == 0 &&
                         rows_aligned(n, {&op.gate_up, &op.grad_out, &op.grad_gate_up, &op.product}) &&
                         rows_aligned(8, op.adapters);
    const auto launch_elements = [&](const auto& adapters) {
      using Adapters = std::decay_t<decltype(adapters)>;
      const GateUp<T, Adapters> gate_up = {pointer<T>(op.gate_up), op.gate_up.row_stride(), width, adapters};
      for_each_element<n>(
          context, {dims['T'], width}, aligned,
          GatedActivationBackward<T, Adapters>{gate_up, pointer<T>(op.grad_out), op.grad_out.row_stride(),
                                               pointer<T>(op.grad_gate_up), op.grad_gate_up.row_stride(),
                                               op.product.defined() ? pointer<T>(op.product) : nullptr,
                                               op.product.defined() ? op.product.row_stride() : 0});
      launch_low_rank_gradients<Device::cuda>(context, op);
    };
    if (!op.adapters.defined()) return launch_elements(NoAdapters{});
    const auto layer = layer_of<T>("SwiGluBackward", context, op.adapters, storage, dims['T'], 2 * width, 2);
    if constexpr (std::is_same_v<T, bf16>) {
      if (aligned && launch_tiles(context, op, layer)) return;
    }
    launch_elements(layer);
  });
}

}  // namespace sl
