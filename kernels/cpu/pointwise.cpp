// Operations element by element: copy, addition, fills.
#include <algorithm>
#include <string>

#include "core/rng.hpp"
#include "kernels/cpu/rows.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {
namespace {

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
void launch<Device::cpu>(const Context& context, const Copy& op) {
  const Flat flat = flatten_both("Copy", context.device, op.x, op.out);
  const Rows x = rows_of(op.x), out = rows_of(op.out);
  for (int64_t row = 0; row < flat.rows; ++row) {
    if (op.scale == 1.0F) {
      std::copy_n(x[row], flat.width, out[row]);
    } else {
      std::transform(x[row], x[row] + flat.width, out[row], [&](float value) { return op.scale * value; });
    }
  }
}

template <>
void launch<Device::cpu>(const Context& context, const Copies& op) {
  for (const Copy& copy : op.all) launch<Device::cpu>(context, copy);
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
