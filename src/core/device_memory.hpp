// Memory of a GPU, for Buffer alone. A build without the CUDA side has the same functions, which throw.
#pragma once

#include <cstdint>
#include <string>

namespace sl {

void* allocate_device(int64_t bytes,
                      const std::string& name);  // zeroed; SystemError when there is not enough
void free_device(void* data) noexcept;
void* allocate_pinned(int64_t bytes,
                      const std::string& name);  // host memory that the GPU copies from directly
void free_pinned(void* data) noexcept;

// Rows of device memory, of `width` bytes each, that begin every `pitch` bytes; on the host they are dense.
struct DeviceRows {
  void* data;
  int64_t pitch, width, rows;
};

// All wait for what was sent to the device before, and return when the copy is done.
void copy_host_to_device(const DeviceRows& device, const void* host);
void copy_device_to_host(void* host, const DeviceRows& device);
void copy_within_device(void* to, const void* from, int64_t bytes);

}  // namespace sl
