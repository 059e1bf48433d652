// What the kernels share: launching (every launch is checked), programmatic dependent launch, reductions,
// vectors of 16 bytes, conversions.
//
// Programmatic dependent launch: a kernel may start while the one before it is still ending. So every kernel
// of ours calls wait_for_previous() before it touches memory that an earlier kernel writes or reads (weights
// that no kernel writes may be prefetched before), and start_next() once the next may take free
// multiprocessors. Both do nothing before sm_90.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "core/context.hpp"
#include "core/tensor.hpp"
#include "kernels/cuda/state.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl::cuda {

using bf16 = __nv_bfloat16;

__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void start_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Launches in the context's stream with programmatic dependent launch, and checks. A grid without blocks is
// no launch.
template <typename... Parameters, typename... Arguments>
void launch_kernel(const Context& context, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   size_t shared_bytes, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.cuda->stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = context.cuda->compute_capability >= 90 ? 1 : 0;
  SL_CUDA(
      cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...));
}

// Calls f with a value of the element type that a float tensor of the storage dtype has.
template <typename F>
void with_element_type(DType dtype, F&& f) {
  if (dtype == DType::bf16) return f(bf16{});
  require(dtype == DType::f32, "a float operation on a tensor of another dtype");
  f(float{});
}

template <typename T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.raw());
}

inline int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
template <typename T>
__device__ inline T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffU, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, offset));
  return x;
}

}  // namespace sl::cuda
