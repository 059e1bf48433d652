#include <cuda_runtime_api.h>

#include <cerrno>

#include "core/device_memory.hpp"
#include "core/error.hpp"

namespace sl {
namespace {

void check(cudaError_t code, const char* call, SourcePlace at = SourcePlace::current()) {
  if (code != cudaSuccess) throw LibraryError("CUDA", call, cudaGetErrorString(code), at);
}

void check_allocation(cudaError_t code, int64_t bytes, const std::string& name, const char* call) {
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is reported here, and must not meet the next call
    throw SystemError("allocation of " + std::to_string(bytes) + " bytes", name, ENOMEM);
  }
  check(code, call);
}

void copy_rows(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, const DeviceRows& shape,
               cudaMemcpyKind kind) {
  const auto width = static_cast<size_t>(shape.width), rows = static_cast<size_t>(shape.rows);
  if (to_pitch == from_pitch) return check(cudaMemcpy(to, from, rows * width, kind), "cudaMemcpy");
  check(cudaMemcpy2D(to, static_cast<size_t>(to_pitch), from, static_cast<size_t>(from_pitch), width, rows,
                     kind),
        "cudaMemcpy2D");
}

}  // namespace

void* allocate_device(int64_t bytes, const std::string& name) {
  void* data = nullptr;
  check_allocation(cudaMalloc(&data, static_cast<size_t>(bytes)), bytes, name, "cudaMalloc");
  check(cudaMemset(data, 0, static_cast<size_t>(bytes)), "cudaMemset");
  return data;
}

void free_device(void* data) noexcept { cudaFree(data); }

void* allocate_pinned(int64_t bytes, const std::string& name) {
  void* data = nullptr;
  check_allocation(cudaMallocHost(&data, static_cast<size_t>(bytes)), bytes, name, "cudaMallocHost");
  return data;
}

void free_pinned(void* data) noexcept { cudaFreeHost(data); }

void copy_host_to_device(const DeviceRows& device, const void* host) {
  copy_rows(device.data, device.pitch, host, device.width, device, cudaMemcpyHostToDevice);
}

void copy_device_to_host(void* host, const DeviceRows& device) {
  copy_rows(host, device.width, device.data, device.pitch, device, cudaMemcpyDeviceToHost);
}

void copy_within_device(void* to, const void* from, int64_t bytes) {
  check(cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice), "cudaMemcpy");
}

}  // namespace sl
