// Buffer: the move-only owner of a named block of memory on a device. Arena: hands out tensors from one
// Buffer. Copies between host and device memory go through copy_to_device and copy_to_host, on every device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.hpp"

namespace sl {

class Buffer {
 public:
  Buffer() = default;
  // `bytes` of zeroed memory, aligned to 64 bytes. Throws SystemError naming `name` when there is not enough.
  Buffer(Device device, int64_t bytes, std::string name);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  const std::string& name() const { return name_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_ = Device::cpu;
  std::string name_;
};

// Host memory to copy from and to a device: page-locked when that is a GPU, so that copies need not wait.
// Contents undefined at first. SystemError naming `name` when there is not enough.
class HostBuffer {
 public:
  HostBuffer() = default;
  HostBuffer(Device device, int64_t bytes, const std::string& name);
  ~HostBuffer();
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
  bool pinned_ = false;
};

// Bump allocator over one Buffer. Everything taken after mark() is given back by release(mark).
class Arena {
 public:
  Arena() = default;
  Arena(Device device, int64_t bytes, std::string name) : buffer_(device, bytes, std::move(name)) {}

  Tensor take(DType dtype, std::initializer_list<int64_t> shape);  // contents undefined; BugError when full
  int64_t mark() const { return used_; }
  void release(int64_t mark) { used_ = mark; }
  int64_t capacity() const { return buffer_.bytes(); }
  Device device() const { return buffer_.device(); }

  // Bytes that take() needs for a tensor of that shape, alignment included; sums of it size an arena.
  static int64_t bytes_for(DType dtype, std::initializer_list<int64_t> shape);
  // The same where tensors of every dtype are to lie at the same places, counted in numbers.
  static int64_t bytes_for_any_dtype(DType dtype, std::initializer_list<int64_t> shape);

 private:
  Buffer buffer_;
  int64_t used_ = 0;
};

// Bytes held by live Buffers and HostBuffers of this process, one entry a name and device, largest first: the
// start-up memory table.
struct MemoryEntry {
  std::string name;
  Device device;
  int64_t bytes;
};
std::vector<MemoryEntry> memory_table();

// Whole-tensor copies; sizes and dtypes must match. The host's rows are dense, the tensor's may have gaps.
// They return when the copy is done.
void copy_to_device(const Tensor& device, const void* host, int64_t bytes);
void copy_to_host(void* host, const Tensor& device, int64_t bytes);

// Floats into a tensor of a float dtype, rounded to it; and back.
void upload_floats(const Tensor& device, std::span<const float> host);
std::vector<float> download_floats(const Tensor& device);

template <typename T>
void upload(const Tensor& device, std::span<const T> host) {
  require(device.dtype() == dtype_of<T>() && device.size() == static_cast<int64_t>(host.size()),
          "upload does not fit " + device.describe());
  copy_to_device(device, host.data(), device.bytes());
}

template <typename T>
std::vector<T> download(const Tensor& device) {
  require(device.dtype() == dtype_of<T>(), "download of another dtype than " + device.describe());
  std::vector<T> host(static_cast<size_t>(device.size()));
  copy_to_host(host.data(), device, device.bytes());
  return host;
}

// While one lives, the pages of the debug device may be touched: operations and copies hold one. Nests.
class DeviceTurn {
 public:
  explicit DeviceTurn(Device device);
  ~DeviceTurn();
  DeviceTurn(const DeviceTurn&) = delete;
  DeviceTurn& operator=(const DeviceTurn&) = delete;

 private:
  bool debug_;
};

}  // namespace sl
