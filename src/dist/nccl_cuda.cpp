#include <cuda_runtime_api.h>
#include <nccl.h>
#include <unistd.h>

#include <exception>
#include <set>
#include <utility>

#include "dist/nccl.hpp"

namespace sl {
namespace {

void check(ncclResult_t code, const char* call, SourcePlace at = SourcePlace::current()) {
  if (code != ncclSuccess) throw LibraryError("NCCL", call, ncclGetErrorString(code), at);
}

ncclDataType_t type_of(const Tensor& tensor) {
  switch (tensor.dtype()) {
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i32:
      return ncclInt32;
    case DType::u32:
      return ncclUint32;
  }
  throw BugError("unknown dtype");
}

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> through_host, cudaStream_t stream)
      : host_(std::move(through_host)), stream_(stream) {
    ncclUniqueId id = {};
    if (host_->rank() == 0) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    host_->broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
    check(ncclCommInitRank(&comm_, host_->size(), id, host_->rank()), "ncclCommInitRank");
  }
  ~NcclCommunicator() override {
    // Ending is collective: a rank that an exception drives out leaves the others to be aborted.
    if (std::uncaught_exceptions() == 0) {
      ncclCommDestroy(comm_);
    } else {
      ncclCommAbort(comm_);
    }
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  bool in_stream() const override { return true; }

  void all_reduce_sum(const Tensor& tensor) override { reduce(tensor, ncclSum); }
  void all_reduce_max(const Tensor& tensor) override { reduce(tensor, ncclMax); }
  void all_gather(const Tensor& part, const Tensor& out) override {
    if (part.device() != Device::cuda) return host_->all_gather(part, out);
    require(part.contiguous() && out.contiguous() && part.dtype() == out.dtype() &&
                part.device() == out.device() && out.size() == part.size() * size(),
            "all_gather of " + part.describe() + " from " + std::to_string(size()) + " ranks into " +
                out.describe());
    check(
        ncclAllGather(part.raw(), out.raw(), static_cast<size_t>(part.size()), type_of(part), comm_, stream_),
        "ncclAllGather");
  }

  void broadcast(std::span<std::byte> bytes, int root) override { host_->broadcast(bytes, root); }
  void all_reduce_sum(std::span<double> values) override { host_->all_reduce_sum(values); }
  void all_reduce_max(std::span<int64_t> values) override { host_->all_reduce_max(values); }
  std::vector<std::string> all_gather(const std::string& part) override { return host_->all_gather(part); }
  void barrier() override { host_->barrier(); }

 private:
  void reduce(const Tensor& tensor, ncclRedOp_t operation) {
    if (tensor.device() != Device::cuda)
      return operation == ncclSum ? host_->all_reduce_sum(tensor) : host_->all_reduce_max(tensor);
    require(tensor.contiguous() && (tensor.dtype() == DType::f32 || tensor.dtype() == DType::bf16),
            "all_reduce of " + tensor.describe());
    check(ncclAllReduce(tensor.raw(), tensor.raw(), static_cast<size_t>(tensor.size()), type_of(tensor),
                        operation, comm_, stream_),
          "ncclAllReduce");
  }

  std::unique_ptr<Communicator> host_;
  cudaStream_t stream_;
  ncclComm_t comm_ = nullptr;
};

// Host and bus address of this rank's GPU.
std::string name_of_gpu() {
  char host[256] = {}, bus[32] = {};
  gethostname(host, sizeof host - 1);
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetPCIBusId(bus, sizeof bus, device) != cudaSuccess)
    throw LibraryError("CUDA", "cudaDeviceGetPCIBusId", "no current device");
  return std::string(host) + "/" + bus;
}

}  // namespace

std::unique_ptr<Communicator> with_nccl(std::unique_ptr<Communicator> through_host, void* stream) {
  if (stream == nullptr || through_host->size() == 1) return through_host;
  const std::vector<std::string> gpus = through_host->all_gather(name_of_gpu());
  const bool shared = std::set<std::string>(gpus.begin(), gpus.end()).size() < gpus.size();
  if (shared) return through_host;
  return std::make_unique<NcclCommunicator>(std::move(through_host), static_cast<cudaStream_t>(stream));
}

}  // namespace sl
