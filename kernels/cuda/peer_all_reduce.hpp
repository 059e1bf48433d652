// All-reduce of small messages between the GPUs of one host, over memory that every GPU maps from the others
// (CUDA IPC): peer_all_reduce.cu. Knows no communicator: who makes one carries the handles between the ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "core/context.hpp"

namespace sl {

class PeerAllReduce {
 public:
  static constexpr int most_ranks = 8;

  // Allocates what the others will map: twice `most_bytes`, a multiple of 16. 2 to most_ranks ranks, each
  // with a GPU of its own.
  PeerAllReduce(const Context& context, int rank, int ranks, int64_t most_bytes);
  // Frees: every rank has called unmap() before any rank comes here.
  ~PeerAllReduce();
  PeerAllReduce(const PeerAllReduce&) = delete;
  PeerAllReduce& operator=(const PeerAllReduce&) = delete;

  // What the other ranks need to know of this one: bytes, the same number on every rank.
  std::string handle() const;
  // Maps the memory of all, given every rank's handle in rank order. Empty when this GPU reads what the
  // others wrote there, else why not; then nothing but the destructor may be called. No rank sums before all
  // have mapped.
  std::string map(const std::vector<std::string>& handles);

  // Every rank has finished its last sum() before any rank comes here.
  void unmap() noexcept;

  // Sends the sum in place of a dense f32 or bf16 tensor of at most most_bytes. Every rank sends the same
  // calls in the same order. Numbers add up in f32 in rank order and are rounded once: all ranks get the same
  // bits, which do not depend on the message around a number. What is summed must not be the weights of the
  // product that is sent next (gemm_few_rows.hpp).
  void sum(const Tensor& tensor) const;
  int64_t most_bytes() const { return most_bytes_; }

  // From this size on a rank sums up a share and gathers the others' (fewer bytes, one meeting more) instead
  // of reading everything of everybody. The same on all ranks; 0: always, for tests.
  void share_from(int64_t bytes) { share_from_ = bytes; }

  // Sends a copy from the memory of rank `peer` to `out`, a dense tensor of at most most_bytes: what a link
  // carries.
  void copy_from(int peer, const Tensor& out) const;

 private:
  const Context context_;
  int rank_, ranks_;
  int64_t most_bytes_, share_from_;
  int blocks_ = 0;
  Buffer shared_;              // what the others map
  Buffer calls_;               // of this rank alone
  std::vector<void*> memory_;  // every rank's shared memory, as this process sees it; null: not mapped
};

}  // namespace sl
