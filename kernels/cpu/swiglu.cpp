// The gated activation, and its gradient.
#include <vector>

#include "kernels/cpu/fast_exp.hpp"
#include "kernels/cpu/low_rank.hpp"
#include "kernels/cpu/rows.hpp"
#include "kernels/low_rank_products.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {
namespace {

Lanes sigmoid(const Lanes& x) { return 1.0F / (1.0F + fast_exp(-x)); }

// Calls body(i, get, put) for each vector of n numbers; get and put handle the last, shorter one.
template <typename Body>
void for_each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    body([i](const float* row) { return load(row + i); },
         [i](float* row, const Lanes& v) { store(row + i, v); });
  if (i == n) return;
  const int64_t rest = n - i;
  body([i, rest](const float* row) { return load_part(row + i, rest); },
       [i, rest](float* row, const Lanes& v) {
         std::memcpy(row + i, &v, static_cast<size_t>(rest) * sizeof(float));
       });
}

// Rows of gates and ups with what adapters add, which leaves the rows themselves as they were.
class AdaptedRow {
 public:
  AdaptedRow(const char* op, const Context& context, const LowRank& adapters, int64_t rows, int64_t width)
      : defined_(adapters.defined()), width_(width), adapters_(op, context, adapters, rows, 2 * width, 2) {}

  // 2F numbers: the row itself where there are no adapters, else valid until this thread's next call.
  const float* of(int64_t t, const float* row) const {
    if (!defined_) return row;
    thread_local std::vector<float> sums;
    sums.assign(row, row + 2 * width_);
    adapters_.add(t, 0, 0, width_, sums.data());
    adapters_.add(t, 1, width_, width_, sums.data() + width_);
    return sums.data();
  }

 private:
  bool defined_;
  int64_t width_;
  LowRankRows adapters_;
};

}  // namespace

template <>
void launch<Device::cpu>(const Context& context, const SwiGlu& op) {
  const int64_t width = op.out.columns();
  const Dims dims = match_shapes("SwiGlu", context.device,
                                 {{"gate_up", op.gate_up, "TG"},
                                  {"out", op.out, "TF"},
                                  {"down_a", op.down_a, "RF", DType::f32, true},
                                  {"down_low", op.down_low, "TR", DType::f32, true}},
                                 {{'G', 2 * width}});
  const Rows gate_up = rows_of(op.gate_up), out = rows_of(op.out);
  const AdaptedRow adapted("SwiGlu", context, op.adapters, dims['T'], width);
#pragma omp parallel for if (dims['T'] * width > parallel_floats)
  for (int64_t t = 0; t < dims['T']; ++t) {
    const float *gate = adapted.of(t, gate_up[t]), *up = gate + width;
    for_each_vector(width, [gate, up, y = out[t]](const auto& get, const auto& put) {
      const Lanes g = get(gate);
      put(y, g * sigmoid(g) * get(up));
    });
  }
  launch_down_low<Device::cpu>(context, op);
}

// d silu(g) / d g = s (1 + g (1 - s)), s = sigmoid(g).
template <>
void launch<Device::cpu>(const Context& context, const SwiGluBackward& op) {
  const int64_t width = op.grad_out.columns();
  const Dims dims = match_shapes("SwiGluBackward", context.device,
                                 {{"gate_up", op.gate_up, "TG"},
                                  {"grad_out", op.grad_out, "TF"},
                                  {"grad_gate_up", op.grad_gate_up, "TG"},
                                  {"product", op.product, "TF", DType::f32, true},
                                  {"down_grad_low", op.down_grad_low, "TR", DType::f32, true},
                                  {"down_grad_a", op.down_grad_a, "RF", DType::f32, true}},
                                 {{'G', 2 * width}});
  const Rows gate_up = rows_of(op.gate_up), grad_out = rows_of(op.grad_out), grad = rows_of(op.grad_gate_up);
  const Rows product = op.product.defined() ? rows_of(op.product) : Rows{nullptr, 0};
  const AdaptedRow adapted("SwiGluBackward", context, op.adapters, dims['T'], width);
#pragma omp parallel for if (dims['T'] * width > parallel_floats)
  for (int64_t t = 0; t < dims['T']; ++t) {
    const float *gate = adapted.of(t, gate_up[t]), *up = gate + width, *grad_y = grad_out[t];
    float *grad_gate = grad[t], *grad_up = grad_gate + width;
    float* y = product.data != nullptr ? product[t] : nullptr;
    for_each_vector(width, [=](const auto& get, const auto& put) {
      const Lanes g = get(gate), u = get(up), gy = get(grad_y), s = sigmoid(g);
      put(grad_gate, gy * u * s * (1.0F + g * (1.0F - s)));
      put(grad_up, gy * g * s);
      if (y != nullptr) put(y, g * s * u);
    });
  }
  launch_low_rank_gradients<Device::cpu>(context, op);
}

}  // namespace sl
