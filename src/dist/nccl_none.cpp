#include "dist/nccl.hpp"

namespace sl {

std::unique_ptr<Communicator> with_nccl(std::unique_ptr<Communicator> through_host, const Context&,
                                        const GpuCollectives&) {
  return through_host;
}

const char* way_of(const Communicator& group) { return group.size() == 1 ? "local" : "mpi"; }

bool copy_from_next(const Communicator&, const Tensor&) { return false; }

}  // namespace sl
