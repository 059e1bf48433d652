// Operations element by element: the gated activation and its gradient, copy, addition, fills.
#include <algorithm>
#include <string>

#include "core/rng.hpp"
#include "kernels/cpu/fast_exp.hpp"
#include "kernels/cpu/rows.hpp"
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

// A tensor as rows: all of it as one where no tensor of the op has gaps.
struct Flat {
  int64_t rows, width;
};
Flat flatten(const Tensor& x, bool dense) {
  if (dense) return {1, x.size()};
  return {x.dim(0), x.size() / std::max<int64_t>(x.dim(0), 1)};
}

// For two tensors of one shape; names the op when they are not.
Flat flatten_both(const char* op, Device device, const Tensor& x, const Tensor& out) {
  bool same = x.device() == device && out.device() == device && x.rank() == out.rank() && x.rank() > 0;
  for (int i = 0; same && i < x.rank(); ++i) same = x.dim(i) == out.dim(i);
  if (!same) throw BugError(std::string(op) + ": x is " + x.describe() + " but out is " + out.describe());
  return flatten(x, x.contiguous() && out.contiguous());
}

}  // namespace

template <>
void launch<Device::cpu>(const Context& context, const SwiGlu& op) {
  const int64_t width = op.out.columns();
  const Dims dims = match_shapes("SwiGlu", context.device,
                                 {{"gate_up", op.gate_up, "TG"}, {"out", op.out, "TF"}}, {{'G', 2 * width}});
  const Rows gate_up = rows_of(op.gate_up), out = rows_of(op.out);
#pragma omp parallel for if (dims['T'] * width > parallel_floats)
  for (int64_t t = 0; t < dims['T']; ++t) {
    const float *gate = gate_up[t], *up = gate + width;
    for_each_vector(width, [gate, up, y = out[t]](const auto& get, const auto& put) {
      const Lanes g = get(gate);
      put(y, g * sigmoid(g) * get(up));
    });
  }
}

// d silu(g) / d g = s (1 + g (1 - s)), s = sigmoid(g).
template <>
void launch<Device::cpu>(const Context& context, const SwiGluBackward& op) {
  const int64_t width = op.grad_out.columns();
  const Dims dims = match_shapes("SwiGluBackward", context.device,
                                 {{"gate_up", op.gate_up, "TG"},
                                  {"grad_out", op.grad_out, "TF"},
                                  {"grad_gate_up", op.grad_gate_up, "TG"}},
                                 {{'G', 2 * width}});
  const Rows gate_up = rows_of(op.gate_up), grad_out = rows_of(op.grad_out), grad = rows_of(op.grad_gate_up);
#pragma omp parallel for if (dims['T'] * width > parallel_floats)
  for (int64_t t = 0; t < dims['T']; ++t) {
    const float *gate = gate_up[t], *up = gate + width, *grad_y = grad_out[t];
    float *grad_gate = grad[t], *grad_up = grad_gate + width;
    for_each_vector(width, [=](const auto& get, const auto& put) {
      const Lanes g = get(gate), u = get(up), gy = get(grad_y), s = sigmoid(g);
      put(grad_gate, gy * u * s * (1.0F + g * (1.0F - s)));
      put(grad_up, gy * g * s);
    });
  }
}

template <>
void launch<Device::cpu>(const Context& context, const Copy& op) {
  const Flat flat = flatten_both("Copy", context.device, op.x, op.out);
  const Rows x = rows_of(op.x), out = rows_of(op.out);
  for (int64_t row = 0; row < flat.rows; ++row) std::copy_n(x[row], flat.width, out[row]);
}

template <>
void launch<Device::cpu>(const Context& context, const Add& op) {
  const Flat flat = flatten_both("Add", context.device, op.x, op.out);
  const Rows x = rows_of(op.x), out = rows_of(op.out);
  for (int64_t row = 0; row < flat.rows; ++row) {
    const float* from = x[row];
    float* to = out[row];
    for (int64_t i = 0; i < flat.width; ++i) to[i] += op.scale * from[i];
  }
}

template <>
void launch<Device::cpu>(const Context& context, const Fill& op) {
  require(op.out.device() == context.device && op.out.defined(), "Fill: out is missing or elsewhere");
  const Flat flat = flatten(op.out, op.out.contiguous());
  const Rows out = rows_of(op.out);
  for (int64_t row = 0; row < flat.rows; ++row) std::fill_n(out[row], flat.width, op.value);
}

template <>
void launch<Device::cpu>(const Context& context, const FillUniform& op) {
  require(op.out.device() == context.device && op.out.defined(), "FillUniform: out is missing or elsewhere");
  const Flat flat = flatten(op.out, op.out.contiguous());
  const Rows out = rows_of(op.out);
  const int64_t size = flat.rows * flat.width;
  const std::array<uint32_t, 2> key = {static_cast<uint32_t>(op.stream),
                                       static_cast<uint32_t>(op.stream >> 32)};
  // Four numbers a block of Philox, counted through all rows.
#pragma omp parallel for if (size > parallel_floats)
  for (int64_t begin = 0; begin < size; begin += 4) {
    const auto block = static_cast<uint64_t>(begin / 4);
    const auto draws =
        philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0, 0}, key);
    for (int64_t i = begin; i < std::min(begin + 4, size); ++i) {
      const float uniform = static_cast<float>(draws[static_cast<size_t>(i - begin)] >> 8) * 0x1.0p-24F;
      out[i / flat.width][i % flat.width] = op.width * (2.0F * uniform - 1.0F);
    }
  }
}

}  // namespace sl
