// Collectives between GPUs, in the order of the device's stream: through NCCL, and small sums through memory
// that the GPUs of one host map from each other (kernels/cuda/peer_all_reduce.hpp). A build without the CUDA
// side has the same functions; they change nothing.
#pragma once

#include <memory>

#include "core/context.hpp"
#include "dist/communicator.hpp"

namespace sl {

struct GpuCollectives {
  // Sums of at most so many bytes go through peer memory where the group's GPUs can reach each other, are on
  // one host and at most 8; 0: all through NCCL. A multiple of 16, and the same on every rank. Between two
  // H200 peer memory is faster up to 16 MiB.
  int64_t peer_bytes = int64_t{8} << 20;
  // From so many bytes on ranks add up shares there (PeerAllReduce::share_from); -1: as is best for their
  // number.
  int64_t shares_from = -1;
};

// A communicator of the same ranks whose collectives on device tensors go between the GPUs; control stays
// with `through_host`. Where ranks of the group share a GPU, a rank is alone or the context is of a host, it
// is `through_host` itself. Collective over the group. LibraryError when NCCL refuses.
//
// What is summed must not be the weights of the product that follows directly (gemm_few_rows.hpp). With
// context.deterministic all sums of more than two ranks go through peer memory where there is some, so that
// their order does not depend on the message.
std::unique_ptr<Communicator> with_nccl(std::unique_ptr<Communicator> through_host, const Context& context,
                                        const GpuCollectives& chosen = {});

// How sums of a group go: "local", "mpi", "nccl", or "peer memory" for small ones and NCCL for others.
const char* way_of(const Communicator& group);

// Sends a copy of out.bytes() from the memory of the next rank's GPU to `out`: what a link between two GPUs
// carries. At most peer_bytes. False, and nothing is sent, where there is no peer memory.
bool copy_from_next(const Communicator& group, const Tensor& out);

}  // namespace sl
