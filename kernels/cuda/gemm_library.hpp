// A product as cuBLASLt describes it.
#pragma once

#include <cublasLt.h>

#include <vector>

#include "core/context.hpp"
#include "kernels/ops.hpp"

namespace sl {

struct LibraryCandidate {
  cublasLtMatmulAlgo_t algorithm;
};

class LibraryProduct {
 public:
  // m, n, k > 0. `op.bias` must be of op.out's dtype: that is what the library can add.
  LibraryProduct(const Context& context, const Gemm& op, int64_t m, int64_t n, int64_t k);

  // At most `most` algorithms, in the order of the library's expectation.
  std::vector<LibraryCandidate> candidates(int most) const;
  bool supports(const cublasLtMatmulAlgo_t& algorithm) const;

  // Writes to `out` (op.out, or scratch laid out as op.out) what op asks for.
  cublasStatus_t run(const cublasLtMatmulAlgo_t& algorithm, void* out) const;

 private:
  const Context& context_;
  const Gemm& op_;
  size_t workspace_bytes_ = 0;
  // The library is column-major: it computes out^T = op(b)^T x op(a)^T, so b is its first operand. The
  // descriptors are plain memory; its calls take pointers that are not const.
  mutable cublasLtMatmulDescOpaque_t product_ = {};
  mutable cublasLtMatrixLayoutOpaque_t first_ = {}, second_ = {}, result_ = {};
};

}  // namespace sl
