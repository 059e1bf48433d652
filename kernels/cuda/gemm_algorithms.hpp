// Which algorithm computes a product fastest: measured once for each kind of product, then remembered, in
// memory and in a file. Candidates are those that cuBLASLt proposes and, for linear layers with few rows, our
// own kernels.
#pragma once

#include <cublasLt.h>

#include <compare>
#include <cstdint>
#include <map>
#include <string>

#include "core/context.hpp"
#include "core/tensor.hpp"
#include "kernels/ops.hpp"

namespace sl {

// Products of one kind share an algorithm.
struct GemmKind {
  int64_t rows = 0;  // of out, rounded up by row_bucket()
  int64_t n = 0, k = 0;
  DType in = DType::f32, out = DType::f32;
  bool transpose_a = false, transpose_b = false;
  bool accumulate = false;  // beta is not 0
  bool bias = false;
  int alignment = 0;  // bytes, at most 16, that divide every operand's address and row stride
  auto operator<=>(const GemmKind&) const = default;
};

// Every number of rows up to 16, multiples of 16 up to 256, then two steps in each power of two, so that
// prompt chunks of arbitrary lengths fall into few kinds.
int64_t row_bucket(int64_t rows);

GemmKind kind_of(const Gemm& op, int64_t m, int64_t n, int64_t k);

struct GemmChoice {
  bool own = false;  // our kernel for few rows (gemm_few_rows.hpp) instead of `library`
  cublasLtMatmulAlgo_t library = {};
};

class GemmAlgorithms {
 public:
  // `cache_path` empty: nothing is read or written. What another device or another version of cuBLASLt
  // measured is kept in the file and not used.
  explicit GemmAlgorithms(std::string cache_path);

  // What to run for a product with m, n, k > 0. The first product of a kind measures its candidates, which
  // takes some milliseconds and waits for the device; `op.out` is then scratch where op.beta is 0. Nothing is
  // measured, and the likely best is taken, while a graph is captured and where the context wants
  // deterministic results.
  GemmChoice choose(const Context& context, const Gemm& op, int64_t m, int64_t n, int64_t k);

 private:
  void read_cache();
  void write_cache() const;

  std::string cache_path_;
  std::string machine_;  // device and version of cuBLASLt, as in the file
  std::map<GemmKind, GemmChoice> known_;
};

}  // namespace sl
