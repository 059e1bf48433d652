// kernels/device.hpp of a build without the CUDA side.
#include <chrono>

#include "core/buffer.hpp"
#include "core/error.hpp"
#include "kernels/device.hpp"

namespace sl {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

int64_t gpu_count() { return 0; }
std::shared_ptr<CudaState> open_gpu(int, const std::string&) {
  throw BugError("this build has no CUDA side");
}
std::string gpu_name(const Context&) { throw BugError("this build has no CUDA side"); }
int64_t free_device_bytes(const Context&) { throw BugError("this build has no CUDA side"); }

void* device_stream(const Context&) { return nullptr; }
void synchronize(const Context&) {}
void send_to_device(const Context&, const Tensor& device, const void* host) {
  copy_to_device(device, host, device.bytes());
}
void send_to_host(const Context&, void* host, const Tensor& device) {
  copy_to_host(host, device, device.bytes());
}

void Mark::set(const Context&) {}
void Mark::wait() const {}

Graph Graph::record(const Context&, std::function<void()> operations) {
  Graph graph;
  graph.on_host_ = std::move(operations);
  return graph;
}
void Graph::replay(const Context&) const { on_host_(); }

ProfilerRange::ProfilerRange(const char*) {}
ProfilerRange::~ProfilerRange() = default;

DeviceTimer::DeviceTimer(const Context& context) : context_(context) {}
void DeviceTimer::start() { begin_ = now(); }
double DeviceTimer::stop() { return now() - begin_; }

}  // namespace sl
