// The GPU as the rest of the program sees it. A build without the CUDA side has the same functions; they then
// know the host only, where everything sent is done at once.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/context.hpp"

namespace sl {

int64_t gpu_count();  // GPUs this process sees; 0 without a CUDA side or a driver

// Opens GPU `index` for this process. `algorithm_cache`: file that remembers which algorithm was fastest for
// a product on this kind of GPU; empty: none. LibraryError when the GPU cannot be used.
std::shared_ptr<CudaState> open_gpu(int index, const std::string& algorithm_cache);
std::string gpu_name(const Context& context);

// The stream that everything is sent through, for libraries that take one; null on hosts.
void* device_stream(const Context& context);

// Bytes of device memory that could be allocated now; the context's device is a GPU.
int64_t free_device_bytes(const Context& context);

// Waits until everything sent to the device is done.
void synchronize(const Context& context);

// Copies that may still be under way on return: `host` is page-locked (HostBuffer) and stays untouched until
// a later Mark has been reached. The tensor is dense.
void send_to_device(const Context& context, const Tensor& device, const void* host);
void send_to_host(const Context& context, void* host, const Tensor& device);

// A place in the order of what is sent to the device, to wait for.
class Mark {
 public:
  void set(const Context& context);  // behind all that has been sent
  void wait() const;                 // until the device has come there; at once when never set

 private:
  std::shared_ptr<void> event_;
};

// A recorded sequence of operations that is sent to the device in one go. The operations' tensors stay where
// they are; what they hold may change between replays.
class Graph {
 public:
  // What `operations` sends to the device, recorded instead of run. On hosts they run at every replay.
  static Graph record(const Context& context, std::function<void()> operations);
  void replay(const Context& context) const;

 private:
  std::shared_ptr<void> executable_;
  std::function<void()> on_host_;
};

// A named stretch of host time in a profiler's timeline (NVTX); nothing without a CUDA side.
class ProfilerRange {
 public:
  explicit ProfilerRange(const char* name);
  ~ProfilerRange();
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
};

// Seconds on the device between start and stop; on hosts, wall time.
class DeviceTimer {
 public:
  explicit DeviceTimer(const Context& context);
  void start();
  double stop();  // waits for the device

 private:
  Context context_;
  std::shared_ptr<void> events_;
  double begin_ = 0.0;
};

}  // namespace sl
