#include "core/buffer.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "core/device_memory.hpp"

namespace sl {
namespace {

constexpr int64_t alignment = 64;

// All live buffers of the process: for the memory table, and for the debug device's protection.
struct Registry {
  std::mutex mutex;
  std::map<const void*, MemoryEntry> live;
  int debug_turns = 0;
};

Registry& registry() {
  static Registry instance;
  return instance;
}

void enlist(const void* data, MemoryEntry entry) {
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  all.live[data] = std::move(entry);
}

void strike_off(const void* data) {
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  all.live.erase(data);
}

void protect_debug_pages(const Registry& all, int protection) {
  for (const auto& [data, entry] : all.live) {
    if (entry.device == Device::debug)
      mprotect(const_cast<void*>(data), static_cast<size_t>(entry.bytes), protection);
  }
}

void* allocate(Device device, int64_t bytes, const std::string& name) {
  if (device == Device::cuda) return allocate_device(bytes, name);
  // Both host kinds come from mmap: zeroed, page-aligned, and given back to the system when freed.
  void* data =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw SystemError("allocation of " + std::to_string(bytes) + " bytes", name, errno);
  return data;
}

// One row where there are no gaps.
DeviceRows rows_in_memory(const Tensor& tensor) {
  if (tensor.contiguous()) return {tensor.raw(), tensor.bytes(), tensor.bytes(), 1};
  return {tensor.raw(), tensor.row_stride() * size_of(tensor.dtype()), tensor.bytes() / tensor.dim(0),
          tensor.dim(0)};
}

}  // namespace

Buffer::Buffer(Device device, int64_t bytes, std::string name)
    : bytes_(std::max<int64_t>(bytes, alignment)), device_(device), name_(std::move(name)) {
  require(bytes >= 0, "negative size of buffer " + name_);
  data_ = allocate(device_, bytes_, name_);
  enlist(data_, {name_, device_, bytes_});
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  if (device_ == Device::debug && all.debug_turns == 0)
    mprotect(data_, static_cast<size_t>(bytes_), PROT_NONE);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  strike_off(data_);
  if (device_ == Device::cuda) {
    free_device(data_);
  } else {
    munmap(data_, static_cast<size_t>(bytes_));
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_),
      name_(std::move(other.name_)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  std::swap(name_, other.name_);
  return *this;
}

HostBuffer::HostBuffer(Device device, int64_t bytes, const std::string& name)
    : data_(device == Device::cuda ? allocate_pinned(bytes, name) : std::malloc(static_cast<size_t>(bytes))),
      pinned_(device == Device::cuda) {
  if (data_ == nullptr && bytes > 0)
    throw SystemError("allocation of " + std::to_string(bytes) + " bytes", name, ENOMEM);
  if (data_ != nullptr) enlist(data_, {name, Device::cpu, bytes});
}

HostBuffer::~HostBuffer() {
  if (data_ != nullptr) strike_off(data_);
  pinned_ ? free_pinned(data_) : std::free(data_);
}

HostBuffer::HostBuffer(HostBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), pinned_(other.pinned_) {}

HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(pinned_, other.pinned_);
  return *this;
}

int64_t Arena::bytes_for_any_dtype(DType dtype, std::initializer_list<int64_t> shape) {
  return bytes_for(DType::bf16, shape) / size_of(DType::bf16) * size_of(dtype);
}

int64_t Arena::bytes_for(DType dtype, std::initializer_list<int64_t> shape) {
  int64_t bytes = size_of(dtype);
  for (int64_t dim : shape) bytes *= dim;
  return (bytes + alignment - 1) / alignment * alignment;
}

Tensor Arena::take(DType dtype, std::initializer_list<int64_t> shape) {
  const int64_t bytes = bytes_for(dtype, shape);
  require(used_ + bytes <= buffer_.bytes(), "arena '" + buffer_.name() + "' of " +
                                                std::to_string(buffer_.bytes()) + " bytes is full at " +
                                                std::to_string(used_) + " + " + std::to_string(bytes));
  Tensor tensor(static_cast<char*>(buffer_.data()) + used_, dtype, buffer_.device(), shape);
  used_ += bytes;
  return tensor;
}

std::vector<MemoryEntry> memory_table() {
  std::map<std::pair<std::string, Device>, MemoryEntry> by_name;
  Registry& all = registry();
  {
    std::lock_guard lock(all.mutex);
    for (const auto& [data, entry] : all.live) {
      MemoryEntry& sum =
          by_name.try_emplace({entry.name, entry.device}, MemoryEntry{entry.name, entry.device, 0})
              .first->second;
      sum.bytes += entry.bytes;
    }
  }
  std::vector<MemoryEntry> table;
  table.reserve(by_name.size());
  for (auto& [name, entry] : by_name) table.push_back(std::move(entry));
  std::sort(table.begin(), table.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  return table;
}

void copy_to_device(const Tensor& device, const void* host, int64_t bytes) {
  require(bytes == device.bytes(), "copy does not fit " + device.describe());
  if (bytes == 0) return;
  const DeviceRows to = rows_in_memory(device);
  if (device.device() == Device::cuda) return copy_host_to_device(to, host);
  DeviceTurn turn(device.device());
  for (int64_t row = 0; row < to.rows; ++row) {
    std::memcpy(static_cast<char*>(to.data) + row * to.pitch, static_cast<const char*>(host) + row * to.width,
                static_cast<size_t>(to.width));
  }
}

void copy_to_host(void* host, const Tensor& device, int64_t bytes) {
  require(bytes == device.bytes(), "copy does not fit " + device.describe());
  if (bytes == 0) return;
  const DeviceRows from = rows_in_memory(device);
  if (device.device() == Device::cuda) return copy_device_to_host(host, from);
  DeviceTurn turn(device.device());
  for (int64_t row = 0; row < from.rows; ++row) {
    std::memcpy(static_cast<char*>(host) + row * from.width,
                static_cast<const char*>(from.data) + row * from.pitch, static_cast<size_t>(from.width));
  }
}

void upload_floats(const Tensor& device, std::span<const float> host) {
  if (device.dtype() == DType::f32) return upload(device, host);
  std::vector<Bf16> rounded(host.size());
  const auto count = static_cast<int64_t>(host.size());
#pragma omp parallel for if (count > 1 << 16)
  for (int64_t i = 0; i < count; ++i) rounded[static_cast<size_t>(i)] = Bf16(host[static_cast<size_t>(i)]);
  upload(device, std::span<const Bf16>(rounded));
}

std::vector<float> download_floats(const Tensor& device) {
  if (device.dtype() == DType::f32) return download<float>(device);
  const std::vector<Bf16> rounded = download<Bf16>(device);
  std::vector<float> host(rounded.size());
  std::ranges::transform(rounded, host.begin(), [](Bf16 value) { return static_cast<float>(value); });
  return host;
}

DeviceTurn::DeviceTurn(Device device) : debug_(device == Device::debug) {
  if (!debug_) return;
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  if (all.debug_turns++ == 0) protect_debug_pages(all, PROT_READ | PROT_WRITE);
}

DeviceTurn::~DeviceTurn() {
  if (!debug_) return;
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  if (--all.debug_turns == 0) protect_debug_pages(all, PROT_NONE);
}

}  // namespace sl
