#include "core/device_memory.hpp"
#include "core/error.hpp"

namespace sl {
namespace {

[[noreturn]] void refuse() { throw BugError("this build has no CUDA device memory"); }

}  // namespace

void* allocate_device(int64_t, const std::string&) { refuse(); }
void free_device(void*) noexcept {}
void* allocate_pinned(int64_t, const std::string&) { refuse(); }
void free_pinned(void*) noexcept {}
void copy_host_to_device(const DeviceRows&, const void*) { refuse(); }
void copy_device_to_host(void*, const DeviceRows&) { refuse(); }
void copy_within_device(void*, const void*, int64_t) { refuse(); }

}  // namespace sl
