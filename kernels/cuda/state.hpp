// What a rank keeps open for its GPU: one stream, in which everything runs in order, and library handles.
// Included by the CUDA side only; the rest of the program knows the name (core/context.hpp) and device.hpp.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "core/buffer.hpp"
#include "core/error.hpp"

namespace sl {

class GemmAlgorithms;  // gemm.cu: which algorithm of cuBLASLt is fastest for a product, measured once

struct CudaState {
  int device = 0;
  int multiprocessors = 0;
  int compute_capability = 0;  // that the kernels here were compiled for: 90 for sm_90a, else at most 89
  // A blocking stream: plain copies (copy_to_device, copy_to_host) are ordered with it.
  cudaStream_t stream = nullptr;
  cublasLtHandle_t blas = nullptr;
  Buffer blas_workspace;
  std::shared_ptr<GemmAlgorithms> algorithms;
  bool capturing = false;  // a graph is being captured: nothing may be measured or allocated
};

// Throws LibraryError with the text of the call when `code` is an error.
void check_cuda(cudaError_t code, const char* call, SourcePlace at = SourcePlace::current());
void check_cublas(cublasStatus_t code, const char* call, SourcePlace at = SourcePlace::current());
#define SL_CUDA(call) ::sl::check_cuda((call), #call)
#define SL_CUBLAS(call) ::sl::check_cublas((call), #call)

}  // namespace sl
