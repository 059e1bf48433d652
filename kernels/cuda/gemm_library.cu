#include "kernels/cuda/gemm_library.hpp"

#include <algorithm>
#include <cstdint>
#include <memory>

#include "kernels/cuda/state.hpp"

namespace sl {
namespace {

cudaDataType_t library_type(DType dtype) {
  require(dtype == DType::f32 || dtype == DType::bf16, "a product of another dtype than f32 and bf16");
  return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

// A row-major matrix is the library's transpose of it.
void describe(cublasLtMatrixLayoutOpaque_t& layout, const Tensor& matrix) {
  const int64_t stride = std::max(matrix.row_stride(), matrix.columns());
  SL_CUBLAS(cublasLtMatrixLayoutInit(&layout, library_type(matrix.dtype()),
                                     static_cast<uint64_t>(matrix.columns()),
                                     static_cast<uint64_t>(matrix.rows()), stride));
}

template <typename T>
void set(cublasLtMatmulDescOpaque_t& product, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  SL_CUBLAS(cublasLtMatmulDescSetAttribute(&product, attribute, &value, sizeof value));
}

uint32_t alignment_of(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address);
  return static_cast<uint32_t>(std::min<uintptr_t>(bits & (~bits + 1), 256));
}

}  // namespace

LibraryProduct::LibraryProduct(const Context& context, const Gemm& op, int64_t m, int64_t n, int64_t k)
    : context_(context), op_(op) {
  require(m > 0 && n > 0 && k > 0, "an empty product for cuBLASLt");
  workspace_bytes_ = static_cast<size_t>(context.cuda->blas_workspace.bytes());
  // Never TF32: products of f32 are as exact as f32 allows.
  SL_CUBLAS(cublasLtMatmulDescInit(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  set(product_, CUBLASLT_MATMUL_DESC_TRANSA, op.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(product_, CUBLASLT_MATMUL_DESC_TRANSB, op.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (op.bias.defined()) {
    require(op.bias.dtype() == op.out.dtype(), "a bias for cuBLASLt of another dtype than the output");
    set(product_, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(product_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(op.bias.raw()));
    set(product_, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, library_type(op.bias.dtype()));
  }
  describe(first_, op.b);
  describe(second_, op.a);
  describe(result_, op.out);
}

std::vector<LibraryCandidate> LibraryProduct::candidates(int most) const {
  cublasLtMatmulPreferenceOpaque_t preference = {};
  SL_CUBLAS(cublasLtMatmulPreferenceInit(&preference));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    SL_CUBLAS(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes_);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(op_.b.raw()));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(op_.a.raw()));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(op_.out.raw()));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(op_.out.raw()));

  const auto results = std::make_unique<cublasLtMatmulHeuristicResult_t[]>(static_cast<size_t>(most));
  int found = 0;
  SL_CUBLAS(cublasLtMatmulAlgoGetHeuristic(context_.cuda->blas, &product_, &first_, &second_, &result_,
                                           &result_, &preference, most, results.get(), &found));
  std::vector<LibraryCandidate> algorithms;
  for (int i = 0; i < found; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[i];
    if (result.state == CUBLAS_STATUS_SUCCESS) algorithms.push_back({result.algo});
  }
  require(!algorithms.empty(),
          "cuBLASLt knows no algorithm for " + op_.a.describe() + " x " + op_.b.describe());
  return algorithms;
}

bool LibraryProduct::supports(const cublasLtMatmulAlgo_t& algorithm) const {
  cublasLtMatmulHeuristicResult_t result = {};
  return cublasLtMatmulAlgoCheck(context_.cuda->blas, &product_, &first_, &second_, &result_, &result_,
                                 &algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= workspace_bytes_;
}

cublasStatus_t LibraryProduct::run(const cublasLtMatmulAlgo_t& algorithm, void* out) const {
  return cublasLtMatmul(context_.cuda->blas, &product_, &op_.alpha, op_.b.raw(), &first_, op_.a.raw(),
                        &second_, &op_.beta, op_.addend.defined() ? op_.addend.raw() : op_.out.raw(),
                        &result_, out, &result_, &algorithm, context_.cuda->blas_workspace.data(),
                        workspace_bytes_, context_.cuda->stream);
}

}  // namespace sl
