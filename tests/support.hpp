// What tests of numbers share: tolerances by one rule, tensors between guard zones, random numbers from fixed
// seeds, gradients by finite differences.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <concepts>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "core/buffer.hpp"
#include "core/context.hpp"

namespace sl::test {

// ||actual - expected|| / ||expected||. Infinite when the sizes differ or anything is not finite; when
// `expected` is all zeros, 0 or infinite.
template <typename Actual, typename Expected>
double relative_error(const std::vector<Actual>& actual, const std::vector<Expected>& expected) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (actual.size() != expected.size()) return infinity;
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double a = static_cast<double>(actual[i]), e = static_cast<double>(expected[i]);
    difference += (a - e) * (a - e);
    norm += e * e;
  }
  if (!std::isfinite(difference) || !std::isfinite(norm)) return infinity;
  if (norm == 0.0) return difference == 0.0 ? 0.0 : infinity;
  return std::sqrt(difference / norm);
}

// The rule for the relative error of sums of n products of floats: rounding errors add up like a random walk.
inline double tolerance(int64_t n_terms) {
  constexpr double constant = 4.0;
  return constant * std::sqrt(static_cast<double>(n_terms)) * std::numeric_limits<float>::epsilon();
}

// Standard normal numbers, times `scale`.
inline std::vector<float> random_floats(int64_t n, uint32_t seed, float scale = 1.0F) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = scale * normal(generator);
  return values;
}

// Whole numbers from -4 to 4, whose sums and products floats hold exactly.
inline std::vector<float> small_integers(int64_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> uniform(-4, 4);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = static_cast<float>(uniform(generator));
  return values;
}

inline std::vector<double> in_double(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

// The gradient of a scalar function by central differences.
inline std::vector<double> finite_differences(
    const std::function<double(const std::vector<double>&)>& function, std::vector<double> at) {
  constexpr double step = 1e-5;
  std::vector<double> gradient(at.size());
  for (size_t i = 0; i < at.size(); ++i) {
    const double kept = at[i];
    at[i] = kept + step;
    const double above = function(at);
    at[i] = kept - step;
    gradient[i] = (above - function(at)) / (2.0 * step);
    at[i] = kept;
  }
  return gradient;
}

// A tensor on a device that lies in the middle of NaN: whoever reads outside it gets NaN, whoever writes
// outside it is found by surroundings_untouched(). A matrix may have a gap of more NaN after each row.
template <typename T>
class Guarded {
 public:
  Guarded(Device device, std::initializer_list<int64_t> shape) : Guarded(device, shape, 0) {}
  // A template, so that one value in braces is not taken for a gap.
  template <std::integral Gap>
  Guarded(Device device, std::initializer_list<int64_t> shape, Gap gap)
      : buffer_(device, bytes_of(shape, gap), "guarded test tensor") {
    const std::vector<uint32_t> pattern(static_cast<size_t>(buffer_.bytes() / 4), nan_pattern);
    copy_to_device(whole(), pattern.data(), buffer_.bytes());
    T* first = static_cast<T*>(buffer_.data()) + guard;
    tensor_ = Tensor(first, dtype_of<T>(), device, shape);
    if (gap > 0) {
      const int64_t rows = tensor_.rows(), columns = tensor_.columns();
      tensor_ = Tensor(first, dtype_of<T>(), device, {rows, columns + gap}).columns(0, columns);
    }
  }
  Guarded(Device device, std::initializer_list<int64_t> shape, const std::vector<T>& values, int64_t gap = 0)
      : Guarded(device, shape, gap) {
    write(values);
  }

  const Tensor& tensor() const { return tensor_; }
  operator const Tensor&() const { return tensor_; }

  void write(const std::vector<T>& values) {
    ASSERT_EQ(static_cast<int64_t>(values.size()), tensor_.size());
    if (tensor_.contiguous()) return upload<T>(tensor_, std::span(values));
    const int64_t width = tensor_.columns();
    for (int64_t row = 0; row < tensor_.rows(); ++row)
      upload<T>(tensor_.rows(row, row + 1),
                std::span(values).subspan(static_cast<size_t>(row * width), static_cast<size_t>(width)));
  }

  std::vector<T> read() const {
    if (tensor_.contiguous()) return download<T>(tensor_);
    std::vector<T> values;
    for (int64_t row = 0; row < tensor_.rows(); ++row) {
      const std::vector<T> part = download<T>(tensor_.rows(row, row + 1));
      values.insert(values.end(), part.begin(), part.end());
    }
    return values;
  }

  bool surroundings_untouched() const {
    std::vector<uint32_t> all(static_cast<size_t>(buffer_.bytes() / 4));
    copy_to_host(all.data(), whole(), buffer_.bytes());
    const int64_t rows = tensor_.rows(), stride = tensor_.row_stride();
    const int64_t width = tensor_.size() / std::max<int64_t>(rows, 1);
    for (int64_t i = 0; i < static_cast<int64_t>(all.size()); ++i) {
      const int64_t at = i - guard;
      const bool inside = at >= 0 && stride > 0 && at / stride < rows && at % stride < width;
      if (!inside && all[static_cast<size_t>(i)] != nan_pattern) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t guard = 64;
  static constexpr uint32_t nan_pattern = 0x7FC12345;

  static int64_t bytes_of(std::initializer_list<int64_t> shape, int64_t gap) {
    int64_t width = 1;
    for (const int64_t* dim = shape.begin() + 1; dim < shape.end(); ++dim) width *= *dim;
    return (*shape.begin() * (width + gap) + 2 * guard) * 4;
  }
  Tensor whole() const { return {buffer_.data(), DType::u32, buffer_.device(), {buffer_.bytes() / 4}}; }

  Buffer buffer_;
  Tensor tensor_;
};

// Tests of operations run on host memory, and on the debug device, which finds host/device mix-ups.
class OnDevices : public ::testing::TestWithParam<Device> {
 protected:
  Device device() const { return GetParam(); }
  Context context() const { return {.device = device()}; }
  Context deterministic() const { return {.device = device(), .deterministic = true}; }
};

inline std::string device_name(const ::testing::TestParamInfo<Device>& info) {
  return std::string(name_of(info.param));
}

#define SL_ON_DEVICES(Suite) \
  INSTANTIATE_TEST_SUITE_P(Devices, Suite, ::testing::Values(Device::cpu, Device::debug), device_name)

}  // namespace sl::test
