#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <chrono>

#include "kernels/cuda/gemm_algorithms.hpp"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/state.hpp"
#include "kernels/device.hpp"

namespace sl {
namespace {

constexpr int64_t blas_workspace_bytes = int64_t{64} << 20;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Events {  // of a DeviceTimer
  Events() {
    SL_CUDA(cudaEventCreate(&begin));
    SL_CUDA(cudaEventCreate(&end));
  }
  ~Events() {
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
  }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;
  cudaEvent_t begin = nullptr, end = nullptr;
};

// A build for older GPUs runs on newer ones too, where its kernels of Hopper are empty.
__global__ void write_compiled_for(int* capability) {
#ifdef __CUDA_ARCH__
  *capability = SL_HOPPER ? 90 : min(__CUDA_ARCH__ / 10, 89);
#endif
}

int compiled_for() {
  const Buffer buffer(Device::cuda, sizeof(int), "probe");
  write_compiled_for<<<1, 1>>>(static_cast<int*>(buffer.data()));
  SL_CUDA(cudaGetLastError());
  int capability = 0;
  SL_CUDA(cudaMemcpy(&capability, buffer.data(), sizeof capability, cudaMemcpyDeviceToHost));
  return capability;
}

}  // namespace

void check_cuda(cudaError_t code, const char* call, SourcePlace at) {
  if (code != cudaSuccess) throw LibraryError("CUDA", call, cudaGetErrorString(code), at);
}

void check_cublas(cublasStatus_t code, const char* call, SourcePlace at) {
  if (code != CUBLAS_STATUS_SUCCESS) throw LibraryError("cuBLAS", call, cublasLtGetStatusString(code), at);
}

int64_t gpu_count() {
  int count = 0;
  // Without a driver or a device this is an error, which means none.
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

std::shared_ptr<CudaState> open_gpu(int index, const std::string& algorithm_cache) {
  SL_CUDA(cudaSetDevice(index));
  std::shared_ptr<CudaState> state(new CudaState, [](CudaState* open) {
    open->algorithms.reset();
    open->blas_workspace = Buffer();
    if (open->blas != nullptr) cublasLtDestroy(open->blas);
    if (open->stream != nullptr) cudaStreamDestroy(open->stream);
    delete open;
  });
  cudaDeviceProp properties = {};
  SL_CUDA(cudaGetDeviceProperties(&properties, index));
  state->device = index;
  state->multiprocessors = properties.multiProcessorCount;
  state->compute_capability = std::min(10 * properties.major + properties.minor, compiled_for());
  SL_CUDA(cudaStreamCreate(&state->stream));
  SL_CUBLAS(cublasLtCreate(&state->blas));
  state->blas_workspace = Buffer(Device::cuda, blas_workspace_bytes, "cuBLASLt workspace");
  state->algorithms = std::make_shared<GemmAlgorithms>(algorithm_cache);
  return state;
}

std::string gpu_name(const Context& context) {
  cudaDeviceProp properties = {};
  SL_CUDA(cudaGetDeviceProperties(&properties, context.cuda->device));
  return properties.name;
}

int64_t free_device_bytes(const Context& context) {
  require(context.device == Device::cuda, "the free memory of a host is not asked for");
  size_t available = 0, total = 0;
  SL_CUDA(cudaMemGetInfo(&available, &total));
  return static_cast<int64_t>(available);
}

void* device_stream(const Context& context) {
  return context.device == Device::cuda ? context.cuda->stream : nullptr;
}

void synchronize(const Context& context) {
  if (context.device == Device::cuda) SL_CUDA(cudaStreamSynchronize(context.cuda->stream));
}

void send_to_device(const Context& context, const Tensor& device, const void* host) {
  if (context.device != Device::cuda) return copy_to_device(device, host, device.bytes());
  require(device.contiguous(), "a copy to " + device.describe());
  SL_CUDA(cudaMemcpyAsync(device.raw(), host, static_cast<size_t>(device.bytes()), cudaMemcpyHostToDevice,
                          context.cuda->stream));
}

void send_to_host(const Context& context, void* host, const Tensor& device) {
  if (context.device != Device::cuda) return copy_to_host(host, device, device.bytes());
  require(device.contiguous(), "a copy from " + device.describe());
  SL_CUDA(cudaMemcpyAsync(host, device.raw(), static_cast<size_t>(device.bytes()), cudaMemcpyDeviceToHost,
                          context.cuda->stream));
}

void Mark::set(const Context& context) {
  if (context.device != Device::cuda) return;
  if (!event_) {
    cudaEvent_t event = nullptr;
    SL_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    event_ =
        std::shared_ptr<void>(event, [](void* made) { cudaEventDestroy(static_cast<cudaEvent_t>(made)); });
  }
  SL_CUDA(cudaEventRecord(static_cast<cudaEvent_t>(event_.get()), context.cuda->stream));
}

void Mark::wait() const {
  if (event_) SL_CUDA(cudaEventSynchronize(static_cast<cudaEvent_t>(event_.get())));
}

Graph Graph::record(const Context& context, std::function<void()> operations) {
  Graph graph;
  if (context.device != Device::cuda) {
    graph.on_host_ = std::move(operations);
    return graph;
  }
  CudaState& state = *context.cuda;
  SL_CUDA(cudaStreamBeginCapture(state.stream, cudaStreamCaptureModeThreadLocal));
  state.capturing = true;
  cudaGraph_t recorded = nullptr;
  try {
    operations();
  } catch (...) {
    state.capturing = false;
    cudaStreamEndCapture(state.stream, &recorded);
    if (recorded != nullptr) cudaGraphDestroy(recorded);
    throw;
  }
  state.capturing = false;
  SL_CUDA(cudaStreamEndCapture(state.stream, &recorded));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, recorded, 0);
  cudaGraphDestroy(recorded);
  check_cuda(made, "cudaGraphInstantiate");
  graph.executable_ = std::shared_ptr<void>(
      executable, [](void* graph_made) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_made)); });
  return graph;
}

void Graph::replay(const Context& context) const {
  if (on_host_) return on_host_();
  SL_CUDA(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_.get()), context.cuda->stream));
}

ProfilerRange::ProfilerRange(const char* name) { nvtxRangePushA(name); }
ProfilerRange::~ProfilerRange() { nvtxRangePop(); }

DeviceTimer::DeviceTimer(const Context& context) : context_(context) {
  if (context.device == Device::cuda) events_ = std::make_shared<Events>();
}

void DeviceTimer::start() {
  begin_ = now();
  if (events_) SL_CUDA(cudaEventRecord(static_cast<Events*>(events_.get())->begin, context_.cuda->stream));
}

double DeviceTimer::stop() {
  if (!events_) return now() - begin_;
  const auto* events = static_cast<Events*>(events_.get());
  SL_CUDA(cudaEventRecord(events->end, context_.cuda->stream));
  SL_CUDA(cudaEventSynchronize(events->end));
  float milliseconds = 0.0F;
  SL_CUDA(cudaEventElapsedTime(&milliseconds, events->begin, events->end));
  return 1e-3 * static_cast<double>(milliseconds);
}

}  // namespace sl
