// The optimizer's step, and the norm that clipping needs.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/rows.hpp"
#include "kernels/ops.hpp"

namespace sl {
namespace {

void check_dense(const char* op, Device device, const Tensor& tensor, int64_t size) {
  if (tensor.device() == device && tensor.contiguous() && tensor.size() == size) return;
  throw BugError(std::string(op) + ": " + tensor.describe() + " is not a dense tensor of " +
                 std::to_string(size) + " numbers on " + std::string(name_of(device)));
}

}  // namespace

template <>
void launch<Device::cpu>(const Context& context, const AdamW& op) {
  const int64_t size = op.parameter.size();
  for (const Tensor* tensor : {&op.parameter, &op.gradient, &op.first_moment, &op.second_moment})
    check_dense("AdamW", context.device, *tensor, size);
  if (op.rounded.defined()) check_dense("AdamW", context.device, op.rounded, size);
  require(op.step >= 1, "AdamW: steps count from 1");
  float* parameter = op.parameter.data<float>();
  const float* gradient = op.gradient.data<float>();
  float *first = op.first_moment.data<float>(), *second = op.second_moment.data<float>();
  const double step = static_cast<double>(op.step);
  const double correction1 = 1.0 - std::pow(static_cast<double>(op.beta1), step);
  const double correction2 = 1.0 - std::pow(static_cast<double>(op.beta2), step);
  const float step_size = static_cast<float>(static_cast<double>(op.learning_rate) / correction1);
  const float second_scale = static_cast<float>(1.0 / std::sqrt(correction2));
  const float keep = 1.0F - op.learning_rate * op.weight_decay;
#pragma omp parallel for simd if (parallel : size > parallel_floats)
  for (int64_t i = 0; i < size; ++i) {
    const float g = gradient[i] * op.gradient_scale;
    first[i] = op.beta1 * first[i] + (1.0F - op.beta1) * g;
    second[i] = op.beta2 * second[i] + (1.0F - op.beta2) * g * g;
    parameter[i] =
        parameter[i] * keep - step_size * first[i] / (std::sqrt(second[i]) * second_scale + op.epsilon);
  }
  if (op.rounded.defined()) std::copy_n(parameter, size, op.rounded.data<float>());
}

template <>
void launch<Device::cpu>(const Context& context, const SumOfSquares& op) {
  const int64_t size = op.x.size();
  check_dense("SumOfSquares", context.device, op.x, size);
  require(op.result != nullptr, "SumOfSquares: no place for the result");
  const float* x = op.x.data<float>();
  // Fixed blocks, added in order, so that the number of threads does not change the sum.
  constexpr int64_t block = 1 << 16;
  thread_local std::vector<double> scratch;
  scratch.assign(static_cast<size_t>((size + block - 1) / block), 0.0);
  double* const sums = scratch.data();
#pragma omp parallel for if (size > block)
  for (int64_t begin = 0; begin < size; begin += block) {
    double total = 0.0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = begin; i < std::min(begin + block, size); ++i)
      total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    sums[begin / block] = total;
  }
  for (double total : scratch) *op.result += total;
}

}  // namespace sl
