// The gated activation and its gradient in double; the latter is checked against finite differences
// (pointwise_test.cpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace sl::test {

inline size_t index(int64_t row, int64_t column, int64_t width) {
  return static_cast<size_t>(row * width + column);
}

inline std::vector<double> swiglu(const std::vector<double>& gate_up, int64_t rows, int64_t width) {
  std::vector<double> out;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t i = 0; i < width; ++i) {
      const double g = gate_up[index(t, i, 2 * width)], u = gate_up[index(t, width + i, 2 * width)];
      out.push_back(g / (1.0 + std::exp(-g)) * u);
    }
  }
  return out;
}

// The gradient of sum(out * grad), by the derivative of silu.
inline std::vector<double> swiglu_gradient(const std::vector<double>& gate_up,
                                           const std::vector<double>& grad, int64_t rows, int64_t width) {
  std::vector<double> result(gate_up.size());
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t i = 0; i < width; ++i) {
      const size_t gate = index(t, i, 2 * width), up = index(t, width + i, 2 * width);
      const double g = gate_up[gate], sigmoid = 1.0 / (1.0 + std::exp(-g)), d = grad[index(t, i, width)];
      result[gate] = d * gate_up[up] * sigmoid * (1.0 + g * (1.0 - sigmoid));
      result[up] = d * g * sigmoid;
    }
  }
  return result;
}

}  // namespace sl::test
