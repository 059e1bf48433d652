// One-shot all-reduce: every rank copies its numbers to memory that the others have mapped, the ranks meet,
// and every rank reads and adds up what it needs. No library call, no host, one launch.
//
//   sum_at_once    one meeting; every rank reads all numbers of all others. For few ranks or few bytes.
//   sum_in_shares  two meetings; a rank reads and adds up its share, then gathers the sums of the others:
//                  2 (n - 1) / n of the message over each link instead of n - 1 times.
//
// Measured between two H200 (NVLink, driver 580), a message in a recorded sequence of them, bf16: 3.8 us for
// 8 to 64 kB, 6.0 for 512 kB and 7.8 for 1 MB, where NCCL takes 6.6, 9.9 and 13.8; from 32 MB on NCCL is
// faster.
//
// Meeting: blocks of the same index meet, so that no barrier over the grid is needed; a block reads only what
// blocks of its index wrote. One thread a peer stores the number of the call to the peer's flag (release, at
// system scope) and waits for the peer's number in its own memory (acquire). The number of the call is
// counted in device memory, so recorded graphs can be replayed.
//
// Why two halves of memory are enough: a rank writes to a half again two calls later. It comes there after a
// call between in which it met every other rank, and they were there only after their grid before had ended
// (griddepcontrol.wait), with all its reads.
//
// A block that waits holds its multiprocessor, so all blocks must find room at once: at most most_blocks, one
// a multiprocessor. They do not wait for anything else of their own GPU. When a peer dies the others wait for
// ever; it is the launcher that ends them (MPI_Abort, or mpirun and srun when a process is gone): a process
// whose kernel spins is killed like any other.
#include <cstring>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/peer_all_reduce.hpp"

namespace sl {
namespace {

using namespace cuda;

constexpr int most_ranks = PeerAllReduce::most_ranks;
constexpr int most_blocks = 64;
constexpr int threads = 512;
// The shared memory: flags [meeting][block][rank], a greeting, and two halves for the numbers.
constexpr int64_t greeting_at = int64_t{2} * most_blocks * most_ranks * sizeof(uint32_t);
constexpr int64_t halves_at = greeting_at + 256;
constexpr uint32_t greeting = 0x5E1F0000;

struct Peers {
  char* memory[most_ranks];  // of every rank, this one's included
  char* own;
  uint32_t* calls;  // [0]: finished calls, [1]: blocks that have read that number
  int rank;
};

__device__ inline void store_release(uint32_t* at, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
__device__ inline uint32_t load_acquire(const uint32_t* at) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}
// Never from the cache of a multiprocessor, which does not see what peers write.
__device__ inline uint4 load_shared_memory(const uint4* at) {
  uint4 value;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(at)
               : "memory");
  return value;
}

template <typename T>
union Vector {
  static constexpr int width = 16 / sizeof(T);
  uint4 bits;
  T elements[width];
  __device__ Vector() : bits{} {}
};

// Numbers 16 bytes at a time; behind the end are zeros. `aligned`: data begins at a multiple of 16 bytes.
template <typename T>
__device__ inline uint4 load_own(const T* data, int64_t v, int64_t count, bool aligned) {
  const int64_t begin = v * Vector<T>::width;
  if (aligned && begin + Vector<T>::width <= count) return *reinterpret_cast<const uint4*>(data + begin);
  Vector<T> vector;
#pragma unroll
  for (int i = 0; i < Vector<T>::width; ++i) {
    if (begin + i < count) vector.elements[i] = data[begin + i];
  }
  return vector.bits;
}
template <typename T>
__device__ inline void store_own(T* data, int64_t v, int64_t count, bool aligned, uint4 bits) {
  const int64_t begin = v * Vector<T>::width;
  if (aligned && begin + Vector<T>::width <= count) {
    *reinterpret_cast<uint4*>(data + begin) = bits;
    return;
  }
  Vector<T> vector;
  vector.bits = bits;
#pragma unroll
  for (int i = 0; i < Vector<T>::width; ++i) {
    if (begin + i < count) data[begin + i] = vector.elements[i];
  }
}

// Where this call's numbers of a rank lie.
__device__ inline uint4* half_of(char* memory, uint32_t call, int64_t half_bytes) {
  return reinterpret_cast<uint4*>(memory + halves_at + static_cast<int64_t>(call % 2) * half_bytes);
}

// The blocks of this index of all ranks wait for each other; what their threads wrote before can be read
// after. Every thread of the grid has read the number of calls before the first meeting.
template <int Ranks>
__device__ inline void meet(const Peers& peers, uint32_t call, int meeting) {
  __syncthreads();
  if (threadIdx.x < Ranks) {
    const int flags = (meeting * most_blocks + static_cast<int>(blockIdx.x)) * most_ranks;
    const int peer = static_cast<int>(threadIdx.x);
    store_release(reinterpret_cast<uint32_t*>(peers.memory[peer]) + flags + peers.rank, call);
    // A peer may be one call ahead already.
    const uint32_t* const flag = reinterpret_cast<const uint32_t*>(peers.own) + flags + peer;
    while (static_cast<int32_t>(load_acquire(flag) - call) < 0) {
    }
  } else if (threadIdx.x == 32 && meeting == 0) {
    // The last block counts the call, for the next one.
    if (atomicAdd(peers.calls + 1, 1U) == gridDim.x - 1) {
      peers.calls[1] = 0;
      peers.calls[0] = call;
    }
  }
  __syncthreads();
}

// In rank order, in f32, rounded once.
template <typename T, int Ranks>
__device__ inline uint4 sum_of(const uint4 (&parts)[Ranks]) {
  float sums[Vector<T>::width];
#pragma unroll
  for (int rank = 0; rank < Ranks; ++rank) {
    Vector<T> part;
    part.bits = parts[rank];
#pragma unroll
    for (int i = 0; i < Vector<T>::width; ++i) {
      const float number = to_float(part.elements[i]);
      sums[i] = rank == 0 ? number : sums[i] + number;
    }
  }
  Vector<T> sum;
#pragma unroll
  for (int i = 0; i < Vector<T>::width; ++i) sum.elements[i] = from_float<T>(sums[i]);
  return sum.bits;
}

template <int Ranks>
__device__ inline void load_from_all(const Peers& peers, uint32_t call, int64_t half_bytes, int64_t v,
                                     uint4 (&parts)[Ranks]) {
#pragma unroll
  for (int rank = 0; rank < Ranks; ++rank)
    parts[rank] = load_shared_memory(half_of(peers.memory[rank], call, half_bytes) + v);
}

template <typename T, int Ranks>
__global__ void __launch_bounds__(threads) sum_at_once(const __grid_constant__ Peers peers, T* data,
                                                       int64_t count, bool aligned, int64_t half_bytes) {
  wait_for_previous();
  start_next();
  // Vectors of a thread under way together: a link is full with some hundred kB under way.
  constexpr int batch = Ranks == 2 ? 4 : Ranks <= 4 ? 2 : 1;
  const uint32_t call = *const_cast<const volatile uint32_t*>(peers.calls) + 1;
  const int64_t vectors = (count + Vector<T>::width - 1) / Vector<T>::width;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
  uint4* const own = half_of(peers.own, call, half_bytes);
  for (int64_t begin = first; begin < vectors; begin += batch * stride) {
    uint4 numbers[batch];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int64_t v = begin + i * stride;
      if (v < vectors) numbers[i] = load_own(data, v, count, aligned);
    }
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int64_t v = begin + i * stride;
      if (v < vectors) own[v] = numbers[i];
    }
  }
  meet<Ranks>(peers, call, 0);
  for (int64_t begin = first; begin < vectors; begin += batch * stride) {
    uint4 parts[batch][Ranks];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int64_t v = begin + i * stride;
      if (v < vectors) load_from_all<Ranks>(peers, call, half_bytes, v, parts[i]);
    }
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int64_t v = begin + i * stride;
      if (v < vectors) store_own(data, v, count, aligned, sum_of<T, Ranks>(parts[i]));
    }
  }
}

// Share p of the vectors is rank p's to add up. Number i of every share is the same thread's on every rank.
template <typename T, int Ranks>
__global__ void __launch_bounds__(threads) sum_in_shares(const __grid_constant__ Peers peers, T* data,
                                                         int64_t count, bool aligned, int64_t half_bytes) {
  wait_for_previous();
  start_next();
  const uint32_t call = *const_cast<const volatile uint32_t*>(peers.calls) + 1;
  const int64_t vectors = (count + Vector<T>::width - 1) / Vector<T>::width;
  const int64_t share = (vectors + Ranks - 1) / Ranks;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
  uint4* const own = half_of(peers.own, call, half_bytes);
  for (int64_t i = first; i < share; i += stride) {
#pragma unroll
    for (int p = 0; p < Ranks; ++p) {
      const int64_t v = p * share + i;
      if (v < vectors) own[v] = load_own(data, v, count, aligned);
    }
  }
  meet<Ranks>(peers, call, 0);
  // Nobody else reads this rank's share here, so the sum takes its place.
  for (int64_t i = first; i < share; i += stride) {
    const int64_t v = peers.rank * share + i;
    if (v >= vectors) continue;
    uint4 parts[Ranks];
    load_from_all<Ranks>(peers, call, half_bytes, v, parts);
    own[v] = sum_of<T, Ranks>(parts);
  }
  meet<Ranks>(peers, call, 1);
  for (int64_t i = first; i < share; i += stride) {
    uint4 sums[Ranks] = {};
#pragma unroll
    for (int p = 0; p < Ranks; ++p) {
      const int64_t v = p * share + i;
      if (v < vectors) sums[p] = load_shared_memory(half_of(peers.memory[p], call, half_bytes) + v);
    }
#pragma unroll
    for (int p = 0; p < Ranks; ++p) {
      const int64_t v = p * share + i;
      if (v < vectors) store_own(data, v, count, aligned, sums[p]);
    }
  }
}

struct Launch {
  const Context& context;
  const Peers& peers;
  const Tensor& tensor;
  bool in_shares;
  int blocks;  // at most
  int64_t half_bytes;
};

template <typename T, int Ranks>
void launch_sum(const Launch& launch) {
  const int64_t count = launch.tensor.size();
  const int64_t vectors = ceil_div(count, 16 / static_cast<int64_t>(sizeof(T)));
  const int64_t items = launch.in_shares ? ceil_div(vectors, Ranks) : vectors;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(launch.blocks, ceil_div(items, threads)));
  T* const data = pointer<T>(launch.tensor);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0;
  launch_kernel(launch.context, launch.in_shares ? sum_in_shares<T, Ranks> : sum_at_once<T, Ranks>,
                dim3(blocks), dim3(threads), 0, launch.peers, data, count, aligned, launch.half_bytes);
}

template <int Ranks>
void launch_sum_of(int ranks, const Launch& launch) {
  if constexpr (Ranks > most_ranks) {
    throw BugError("more ranks than a peer all-reduce takes");
  } else {
    if (ranks != Ranks) return launch_sum_of<Ranks + 1>(ranks, launch);
    with_element_type(launch.tensor.dtype(),
                      [&](auto element) { launch_sum<decltype(element), Ranks>(launch); });
  }
}

// From where on the second meeting costs less than the bytes it saves: it took 2.6 us between two H200, in
// which a link of 350 GB/s carries 900 kB. Two ranks read the other's half either way.
int64_t best_share_from(int64_t ranks, int64_t most_bytes) {
  constexpr int64_t bytes_of_a_meeting = 900'000;
  return ranks == 2 ? most_bytes + 1 : bytes_of_a_meeting * ranks / ((ranks - 1) * (ranks - 2));
}

// What travels between the ranks.
struct Handle {
  cudaIpcMemHandle_t memory;
  int64_t most_bytes;
  int blocks;
  char bus[32];  // address of the GPU
};

Handle read_handle(const std::string& bytes) {
  Handle handle;
  require(bytes.size() == sizeof handle, "not the handle of a peer all-reduce");
  std::memcpy(&handle, bytes.data(), sizeof handle);
  return handle;
}

// Why this GPU cannot reach the one at that address; empty when it can.
std::string obstacle_between(int own, const char* bus) {
  int peer = 0, reaches = 0;
  const bool visible = cudaDeviceGetByPCIBusId(&peer, bus) == cudaSuccess;
  const bool asked = visible && cudaDeviceCanAccessPeer(&reaches, own, peer) == cudaSuccess;
  cudaGetLastError();
  if (!visible) return std::string("this process does not see the GPU at ") + bus;
  if (!asked || reaches == 0) return std::string("no access to the memory of the GPU at ") + bus;
  return {};
}

}  // namespace

PeerAllReduce::PeerAllReduce(const Context& context, int rank, int ranks, int64_t most_bytes)
    : context_(context),
      rank_(rank),
      ranks_(ranks),
      most_bytes_(most_bytes),
      share_from_(best_share_from(ranks, most_bytes)),
      blocks_(std::min(most_blocks, context.cuda->multiprocessors)),
      shared_(Device::cuda, halves_at + 2 * most_bytes, "peer all-reduce"),
      calls_(Device::cuda, 2 * static_cast<int64_t>(sizeof(uint32_t)), "peer all-reduce"),
      memory_(static_cast<size_t>(ranks), nullptr) {
  require(ranks >= 2 && ranks <= most_ranks && rank >= 0 && rank < ranks && most_bytes % 16 == 0,
          "a peer all-reduce of an impossible form");
  const uint32_t word = greeting + static_cast<uint32_t>(rank);
  SL_CUDA(cudaMemcpy(static_cast<char*>(shared_.data()) + greeting_at, &word, sizeof word,
                     cudaMemcpyHostToDevice));
  SL_CUDA(cudaDeviceSynchronize());  // zeros and greeting are there before anybody hears of them
}

PeerAllReduce::~PeerAllReduce() { unmap(); }

void PeerAllReduce::unmap() noexcept {
  for (int rank = 0; rank < ranks_; ++rank) {
    void*& mapped = memory_[static_cast<size_t>(rank)];
    if (rank != rank_ && mapped != nullptr) cudaIpcCloseMemHandle(mapped);
    mapped = nullptr;
  }
}

std::string PeerAllReduce::handle() const {
  Handle handle = {};
  handle.most_bytes = most_bytes_;
  handle.blocks = blocks_;
  SL_CUDA(cudaDeviceGetPCIBusId(handle.bus, sizeof handle.bus, context_.cuda->device));
  // A system that refuses shows it again when the others try to map; nothing is mapped from zeros.
  if (cudaIpcGetMemHandle(&handle.memory, shared_.data()) != cudaSuccess) cudaGetLastError();
  std::string bytes(sizeof handle, '\0');
  std::memcpy(bytes.data(), &handle, sizeof handle);
  return bytes;
}

std::string PeerAllReduce::map(const std::vector<std::string>& handles) {
  require(std::ssize(handles) == ranks_, "a peer all-reduce without every rank's handle");
  for (int rank = 0; rank < ranks_; ++rank) {
    const Handle handle = read_handle(handles[static_cast<size_t>(rank)]);
    require(handle.most_bytes == most_bytes_, "the ranks of a peer all-reduce have different sizes");
    blocks_ = std::min(blocks_, handle.blocks);
    void*& mapped = memory_[static_cast<size_t>(rank)];
    if (rank == rank_) {
      mapped = shared_.data();
      continue;
    }
    if (std::string obstacle = obstacle_between(context_.cuda->device, handle.bus); !obstacle.empty())
      return obstacle;
    const cudaError_t opened = cudaIpcOpenMemHandle(&mapped, handle.memory, cudaIpcMemLazyEnablePeerAccess);
    uint32_t word = 0;
    const cudaError_t read =
        opened == cudaSuccess
            ? cudaMemcpy(&word, static_cast<char*>(mapped) + greeting_at, sizeof word, cudaMemcpyDeviceToHost)
            : opened;
    if (opened != cudaSuccess) mapped = nullptr;
    if (read != cudaSuccess) {
      cudaGetLastError();
      return std::string("memory of rank ") + std::to_string(rank) + ": " + cudaGetErrorString(read);
    }
    if (word != greeting + static_cast<uint32_t>(rank))
      return "the memory of rank " + std::to_string(rank) + " does not hold what it wrote";
  }
  return {};
}

void PeerAllReduce::sum(const Tensor& tensor) const {
  require(tensor.device() == Device::cuda && tensor.contiguous() && tensor.bytes() <= most_bytes_,
          "peer all-reduce of " + tensor.describe());
  if (tensor.size() == 0) return;
  Peers peers = {};
  for (int rank = 0; rank < ranks_; ++rank)
    peers.memory[rank] = static_cast<char*>(memory_[static_cast<size_t>(rank)]);
  peers.own = peers.memory[rank_];
  peers.calls = static_cast<uint32_t*>(calls_.data());
  peers.rank = rank_;
  launch_sum_of<2>(ranks_, {.context = context_,
                            .peers = peers,
                            .tensor = tensor,
                            .in_shares = tensor.bytes() >= share_from_,
                            .blocks = blocks_,
                            .half_bytes = most_bytes_});
}

void PeerAllReduce::copy_from(int peer, const Tensor& out) const {
  require(peer >= 0 && peer < ranks_ && out.device() == Device::cuda && out.contiguous() &&
              out.bytes() <= most_bytes_,
          "a copy from a peer to " + out.describe());
  SL_CUDA(cudaMemcpyAsync(out.raw(), static_cast<char*>(memory_[static_cast<size_t>(peer)]) + halves_at,
                          static_cast<size_t>(out.bytes()), cudaMemcpyDeviceToDevice, context_.cuda->stream));
}

}  // namespace sl
