#include <cuda_runtime_api.h>
#include <nccl.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <set>
#include <utility>

#include "core/log.hpp"
#include "dist/nccl.hpp"
#include "dist/operands.hpp"
#include "kernels/cuda/peer_all_reduce.hpp"
#include "kernels/device.hpp"

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

void check(cudaError_t code, const char* call, SourcePlace at = SourcePlace::current()) {
  if (code != cudaSuccess) throw LibraryError("CUDA", call, cudaGetErrorString(code), at);
}

// A second stream of the device, before the first where both have work: who waits for its collectives waits
// less.
struct Beside {
  Beside() {
    int least = 0, greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest),
          "cudaStreamCreateWithPriority");
    for (cudaEvent_t* event : {&so_far, &sent})
      check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  }
  ~Beside() {
    cudaEventDestroy(sent);
    cudaEventDestroy(so_far);
    cudaStreamDestroy(stream);
  }
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;

  cudaStream_t stream = nullptr;
  cudaEvent_t so_far = nullptr, sent = nullptr;
};

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> through_host, const Context& context,
                   std::unique_ptr<PeerAllReduce> peers)
      : host_(std::move(through_host)),
        stream_(static_cast<cudaStream_t>(device_stream(context))),
        // Two numbers have one sum, whoever adds.
        all_through_peers_(context.deterministic && host_->size() > 2),
        peers_(std::move(peers)) {
    ncclUniqueId id = {};
    if (host_->rank() == 0) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    host_->broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
    check(ncclCommInitRank(&comm_, host_->size(), id, host_->rank()), "ncclCommInitRank");
  }
  ~NcclCommunicator() override {
    // Ending is collective: a rank that an exception drives out leaves the others to be aborted.
    if (std::uncaught_exceptions() > 0) {
      ncclCommAbort(comm_);
      return;
    }
    ncclCommDestroy(comm_);
    if (!peers_) return;
    // Nobody unmaps while somebody reads, and nobody frees what is mapped.
    cudaDeviceSynchronize();
    host_->barrier();
    peers_->unmap();
    host_->barrier();
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  bool in_stream() const override { return true; }
  const PeerAllReduce* peers() const { return peers_.get(); }

  void all_reduce_sum(const Tensor& tensor) override { reduce(tensor, ncclSum); }
  void all_reduce_max(const Tensor& tensor) override { reduce(tensor, ncclMax); }
  void reduce_sum(const Tensor& tensor, int root) override {
    if (tensor.device() != Device::cuda) return host_->reduce_sum(tensor, root);
    require_numbers("reduce", tensor);
    check(ncclReduce(tensor.raw(), tensor.raw(), static_cast<size_t>(tensor.size()), type_of(tensor), ncclSum,
                     root, comm_, stream_),
          "ncclReduce");
  }
  void reduce_scatter_sum(const Tensor& whole, const Tensor& part) override {
    if (part.device() != Device::cuda) return host_->reduce_scatter_sum(whole, part);
    require_numbers("reduce_scatter", whole);
    require_parts("reduce_scatter", whole, part, size());
    check(ncclReduceScatter(whole.raw(), part.raw(), static_cast<size_t>(part.size()), type_of(part), ncclSum,
                            comm_, stream_),
          "ncclReduceScatter");
  }
  void all_gather(const Tensor& part, const Tensor& out) override {
    if (part.device() != Device::cuda) return host_->all_gather(part, out);
    require_parts("all_gather", out, part, size());
    check(
        ncclAllGather(part.raw(), out.raw(), static_cast<size_t>(part.size()), type_of(part), comm_, stream_),
        "ncclAllGather");
  }

  // All through NCCL: memory of peers is for one sum at a time, in the order of the device's stream.
  void send_beside(const std::function<void()>& send) override {
    check(cudaEventRecord(beside_.so_far, stream_), "cudaEventRecord");
    check(cudaStreamWaitEvent(beside_.stream, beside_.so_far), "cudaStreamWaitEvent");
    const cudaStream_t main = std::exchange(stream_, beside_.stream);
    std::unique_ptr<PeerAllReduce> peers = std::move(peers_);
    send();
    stream_ = main;
    peers_ = std::move(peers);
    check(cudaEventRecord(beside_.sent, beside_.stream), "cudaEventRecord");
  }
  void join() override { check(cudaStreamWaitEvent(stream_, beside_.sent), "cudaStreamWaitEvent"); }

  void broadcast(std::span<std::byte> bytes, int root) override { host_->broadcast(bytes, root); }
  void all_reduce_sum(std::span<double> values) override { host_->all_reduce_sum(values); }
  void all_reduce_max(std::span<int64_t> values) override { host_->all_reduce_max(values); }
  std::vector<std::string> all_gather(const std::string& part) override { return host_->all_gather(part); }
  void barrier() override { host_->barrier(); }

 private:
  void reduce(const Tensor& tensor, ncclRedOp_t operation) {
    if (tensor.device() != Device::cuda)
      return operation == ncclSum ? host_->all_reduce_sum(tensor) : host_->all_reduce_max(tensor);
    require_numbers("all_reduce", tensor);
    if (peers_ && operation == ncclSum && (all_through_peers_ || tensor.bytes() <= peers_->most_bytes()))
      return sum_through_peers(tensor);
    check(ncclAllReduce(tensor.raw(), tensor.raw(), static_cast<size_t>(tensor.size()), type_of(tensor),
                        operation, comm_, stream_),
          "ncclAllReduce");
  }

  void sum_through_peers(const Tensor& tensor) const {
    if (tensor.bytes() <= peers_->most_bytes()) return peers_->sum(tensor);
    const Tensor numbers = tensor.reshaped({tensor.size()});
    const int64_t piece = peers_->most_bytes() / size_of(tensor.dtype());
    for (int64_t begin = 0; begin < numbers.size(); begin += piece)
      peers_->sum(numbers.rows(begin, std::min(begin + piece, numbers.size())));
  }

  std::unique_ptr<Communicator> host_;
  cudaStream_t stream_;
  bool all_through_peers_;
  ncclComm_t comm_ = nullptr;
  Beside beside_;
  std::unique_ptr<PeerAllReduce> peers_;
};

// This rank's GPU: host, and address on it.
struct GpuName {
  std::string host, bus;
};
GpuName name_of_gpu() {
  char host[256] = {}, bus[32] = {};
  gethostname(host, sizeof host - 1);
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetPCIBusId(bus, sizeof bus, device) != cudaSuccess)
    throw LibraryError("CUDA", "cudaDeviceGetPCIBusId", "no current device");
  return {host, bus};
}

size_t different(const std::vector<std::string>& names) {
  return std::set<std::string>(names.begin(), names.end()).size();
}

// None, and a word in the log, unless every GPU of the group reads what every other wrote. Collective.
std::unique_ptr<PeerAllReduce> peers_of(Communicator& group, const Context& context,
                                        const GpuCollectives& chosen) {
  auto peers = std::make_unique<PeerAllReduce>(context, group.rank(), group.size(), chosen.peer_bytes);
  if (chosen.shares_from >= 0) peers->share_from(chosen.shares_from);
  const std::string obstacle = peers->map(group.all_gather(peers->handle()));
  int64_t refused = obstacle.empty() ? 0 : 1;
  group.all_reduce_max(std::span(&refused, 1));
  if (refused == 0) return peers;
  if (!obstacle.empty()) spdlog::info("small sums go through NCCL, not through peer memory: {}", obstacle);
  peers->unmap();
  group.barrier();  // nobody frees what is mapped
  return nullptr;
}

}  // namespace

std::unique_ptr<Communicator> with_nccl(std::unique_ptr<Communicator> through_host, const Context& context,
                                        const GpuCollectives& chosen) {
  if (context.device != Device::cuda || through_host->size() == 1) return through_host;
  const GpuName own = name_of_gpu();
  const std::vector<std::string> gpus = through_host->all_gather(own.host + "/" + own.bus);
  if (different(gpus) < gpus.size()) return through_host;
  const bool one_host = different(through_host->all_gather(own.host)) == 1;
  std::unique_ptr<PeerAllReduce> peers;
  if (chosen.peer_bytes > 0 && one_host && through_host->size() <= PeerAllReduce::most_ranks)
    peers = peers_of(*through_host, context, chosen);
  spdlog::debug("collectives of {} GPUs: {}", gpus.size(), peers ? "peer memory and NCCL" : "NCCL");
  return std::make_unique<NcclCommunicator>(std::move(through_host), context, std::move(peers));
}

const char* way_of(const Communicator& group) {
  if (group.size() == 1) return "local";
  const auto* const nccl = dynamic_cast<const NcclCommunicator*>(&group);
  if (nccl == nullptr) return "mpi";
  return nccl->peers() != nullptr ? "peer memory" : "nccl";
}

bool copy_from_next(const Communicator& group, const Tensor& out) {
  const auto* const nccl = dynamic_cast<const NcclCommunicator*>(&group);
  if (nccl == nullptr || nccl->peers() == nullptr) return false;
  nccl->peers()->copy_from((group.rank() + 1) % group.size(), out);
  return true;
}

}  // namespace sl
