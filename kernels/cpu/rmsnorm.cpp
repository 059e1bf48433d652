// Root-mean-square normalisation (Zhang and Sennrich 2019) with the residual addition before it.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/low_rank.hpp"
#include "kernels/cpu/rows.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {
namespace {

double sum_of_squares(const float* x, int64_t n) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

float inverse_rms(const float* x, int64_t n, float epsilon) {
  return static_cast<float>(1.0 / std::sqrt(sum_of_squares(x, n) / static_cast<double>(n) + epsilon));
}

}  // namespace

template <>
void launch<Device::cpu>(const Context& context, const AddRmsNorm& op) {
  const Dims dims = match_shapes("AddRmsNorm", context.device,
                                 {{"residual", op.residual, "TH"},
                                  {"delta", op.delta, "TH", DType::f32, true},
                                  {"weight", op.weight, "H"},
                                  {"out", op.out, "TH"}});
  const int64_t width = dims['H'];
  const Rows residual = rows_of(op.residual), out = rows_of(op.out);
  const Rows delta = op.delta.defined() ? rows_of(op.delta) : Rows{nullptr, 0};
  const float* weight = op.weight.data<float>();
  require(op.delta.defined() || !op.adapters.defined(), "AddRmsNorm: adapters of a delta that is missing");
  const LowRankRows adapters("AddRmsNorm", context, op.adapters, dims['T'], width, 1);
#pragma omp parallel for if (dims['T'] * width > parallel_floats)
  for (int64_t t = 0; t < dims['T']; ++t) {
    float* x = residual[t];
    if (delta.data != nullptr) {
      const float* change = delta[t];
      for (int64_t i = 0; i < width; ++i) x[i] += change[i];
    }
    adapters.add(t, 0, 0, width, x);
    const float inverse = inverse_rms(x, width, op.epsilon);
    float* y = out[t];
    for (int64_t i = 0; i < width; ++i) y[i] = x[i] * inverse * weight[i];
  }
}

// With r = 1 / rms(x) and g = grad_out * weight: grad_x = r g - x r^3 (g . x) / H.
template <>
void launch<Device::cpu>(const Context& context, const RmsNormBackward& op) {
  const Dims dims = match_shapes("RmsNormBackward", context.device,
                                 {{"x", op.x, "TH"},
                                  {"weight", op.weight, "H"},
                                  {"grad_out", op.grad_out, "TH"},
                                  {"grad_x", op.grad_x, "TH"},
                                  {"grad_weight", op.grad_weight, "H", DType::f32, true},
                                  {"rounded", op.rounded, "TH", DType::f32, true},
                                  {"normalised", op.normalised, "TH", DType::f32, true}});
  const int64_t rows = dims['T'], width = dims['H'];
  const Rows x = rows_of(op.x), grad_out = rows_of(op.grad_out), grad_x = rows_of(op.grad_x);
  const Rows rounded = op.rounded.defined() ? rows_of(op.rounded) : Rows{nullptr, 0};
  const Rows normalised = op.normalised.defined() ? rows_of(op.normalised) : Rows{nullptr, 0};
  const float* weight = op.weight.data<float>();
  thread_local std::vector<float> scratch;
  scratch.resize(static_cast<size_t>(rows));
  float* inverses = scratch.data();
#pragma omp parallel for if (rows * width > parallel_floats)
  for (int64_t t = 0; t < rows; ++t) {
    const float *xt = x[t], *gt = grad_out[t];
    const float inverse = inverse_rms(xt, width, op.epsilon);
    inverses[t] = inverse;
    double product = 0.0;
#pragma omp simd reduction(+ : product)
    for (int64_t i = 0; i < width; ++i)
      product += static_cast<double>(gt[i] * weight[i]) * static_cast<double>(xt[i]);
    const float along =
        static_cast<float>(product * std::pow(static_cast<double>(inverse), 3) / static_cast<double>(width));
    float* result = grad_x[t];
    for (int64_t i = 0; i < width; ++i) result[i] += inverse * gt[i] * weight[i] - along * xt[i];
    if (rounded.data != nullptr) std::copy_n(result, width, rounded[t]);
    if (normalised.data == nullptr) continue;
    for (int64_t i = 0; i < width; ++i) normalised[t][i] = xt[i] * inverse * weight[i];
  }
  if (!op.grad_weight.defined()) return;
  // Blocks of columns, so that the order of the sum over rows does not depend on the number of threads.
  constexpr int64_t block = 64;
  float* grad_weight = op.grad_weight.data<float>();
#pragma omp parallel for if (rows * width > parallel_floats)
  for (int64_t begin = 0; begin < width; begin += block) {
    const int64_t n = std::min(block, width - begin);
    double sums[block] = {};
    for (int64_t t = 0; t < rows; ++t) {
      const float *xt = x[t] + begin, *gt = grad_out[t] + begin;
      for (int64_t i = 0; i < n; ++i) sums[i] += static_cast<double>(gt[i] * xt[i] * inverses[t]);
    }
    for (int64_t i = 0; i < n; ++i) grad_weight[begin + i] += static_cast<float>(sums[i]);
  }
}

}  // namespace sl
