#include "core/buffer.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

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

void protect_debug_pages(const Registry& all, int protection) {
  for (const auto& [data, entry] : all.live) {
    if (entry.device == Device::debug)
      mprotect(const_cast<void*>(data), static_cast<size_t>(entry.bytes), protection);
  }
}

void* allocate(Device device, int64_t bytes, const std::string& name) {
  if (device == Device::cuda) throw BugError("this build has no CUDA device memory");
  // Both host kinds come from mmap: zeroed, page-aligned, and given back to the system when freed.
  void* data =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw SystemError("allocation of " + std::to_string(bytes) + " bytes", name, errno);
  return data;
}

}  // namespace

Buffer::Buffer(Device device, int64_t bytes, std::string name)
    : bytes_(std::max<int64_t>(bytes, alignment)), device_(device), name_(std::move(name)) {
  require(bytes >= 0, "negative size of buffer " + name_);
  data_ = allocate(device_, bytes_, name_);
  Registry& all = registry();
  std::lock_guard lock(all.mutex);
  all.live[data_] = {name_, device_, bytes_};
  if (device_ == Device::debug && all.debug_turns == 0)
    mprotect(data_, static_cast<size_t>(bytes_), PROT_NONE);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  {
    Registry& all = registry();
    std::lock_guard lock(all.mutex);
    all.live.erase(data_);
  }
  munmap(data_, static_cast<size_t>(bytes_));
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
  std::map<std::string, MemoryEntry> by_name;
  Registry& all = registry();
  {
    std::lock_guard lock(all.mutex);
    for (const auto& [data, entry] : all.live) {
      MemoryEntry& sum =
          by_name.try_emplace(entry.name, MemoryEntry{entry.name, entry.device, 0}).first->second;
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
  require(device.contiguous() && bytes == device.bytes(), "copy does not fit " + device.describe());
  DeviceTurn turn(device.device());
  if (bytes > 0) std::memcpy(device.raw(), host, static_cast<size_t>(bytes));
}

void copy_to_host(void* host, const Tensor& device, int64_t bytes) {
  require(device.contiguous() && bytes == device.bytes(), "copy does not fit " + device.describe());
  DeviceTurn turn(device.device());
  if (bytes > 0) std::memcpy(host, device.raw(), static_cast<size_t>(bytes));
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
