#include "dist/nccl.hpp"

namespace sl {

std::unique_ptr<Communicator> with_nccl(std::unique_ptr<Communicator> through_host, void*) {
  return through_host;
}

}  // namespace sl
