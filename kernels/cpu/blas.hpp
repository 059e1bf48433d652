// The one product of BLAS that the operations use, on rows.
#pragma once

#include <cblas.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/cpu/rows.hpp"

namespace sl {

inline int blas_int(int64_t value) {
  require(value <= std::numeric_limits<int>::max(), "a dimension passes what BLAS can count");
  return static_cast<int>(value);
}

// out = alpha * op(a) x op(b) + beta * out; op(a) is (m, k), op(b) is (k, n), all at least 1. On one thread
// when called from a parallel region. Does not read out when beta is 0.
inline void sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                  ConstRows a, ConstRows b, float beta, Rows out) {
  // A matrix of one row may have any stride, which BLAS would refuse.
  const auto stride = [](int64_t given, int64_t width) { return blas_int(std::max(given, width)); };
  cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
              blas_int(m), blas_int(n), blas_int(k), alpha, a.data, stride(a.stride, transpose_a ? m : k),
              b.data, stride(b.stride, transpose_b ? k : n), beta, out.data, stride(out.stride, n));
}

}  // namespace sl
