// Communicator: collectives among the ranks of one group, passed to whoever needs them. One small interface
// with a one-rank form (nothing happens), MPI between CPU ranks, and NCCL between GPUs where built. Every
// rank of the group must make the same calls in the same order. Reductions are in place and add in an order
// that does not depend on timing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.hpp"

namespace sl {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Collectives on device tensors are sent like operations, in order, and do not wait for the host.
  virtual bool in_stream() const { return false; }

  // All ranks receive the same bits.
  virtual void all_reduce_sum(const Tensor& tensor) = 0;  // f32 or bf16, dense
  virtual void all_reduce_max(const Tensor& tensor) = 0;  // f32 or bf16, dense
  // The sum of all ranks' tensors comes to be on `root`; on the others the tensor is left as anything.
  virtual void reduce_sum(const Tensor& tensor, int root) = 0;  // f32 or bf16, dense
  // Of the sum of all ranks' `whole` (size, part...) rank r receives part r. Both dense, f32 or bf16, apart.
  virtual void reduce_scatter_sum(const Tensor& whole, const Tensor& part) = 0;
  // out (size, part...) receives every rank's `part`, in rank order; both dense, any dtype. `part` may be the
  // rank's own place in `out`, but must not overlap it otherwise.
  virtual void all_gather(const Tensor& part, const Tensor& out) = 0;

  // The collectives on device tensors that `send` asks for wait for what was sent to the device before, but
  // not what is sent after; join() makes what is sent after it wait for them. Where collectives wait for the
  // host they are over when this returns.
  virtual void send_beside(const std::function<void()>& send) { send(); }
  virtual void join() {}

  // Host-side control: small, always through MPI.
  virtual void broadcast(std::span<std::byte> bytes, int root) = 0;
  virtual void all_reduce_sum(std::span<double> values) = 0;
  virtual void all_reduce_max(std::span<int64_t> values) = 0;
  // Every rank's string, in rank order.
  virtual std::vector<std::string> all_gather(const std::string& part) = 0;
  virtual void barrier() = 0;
};

// The communicator of one rank: nothing to exchange. Works without MPI.
std::unique_ptr<Communicator> make_local_communicator();

}  // namespace sl
