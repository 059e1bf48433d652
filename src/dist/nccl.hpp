// Collectives between GPUs through NCCL, in the order of the device's stream. A build without the CUDA side
// has the same function; it changes nothing.
#pragma once

#include <memory>

#include "core/context.hpp"
#include "dist/communicator.hpp"

namespace sl {

// A communicator of the same ranks whose collectives on device tensors go through NCCL; control stays with
// `through_host`. Where ranks of the group share a GPU, or a rank is alone, it is `through_host` itself.
// `stream` is the device's stream (device_stream() of kernels/device.hpp; null on hosts). Collective over the
// group. LibraryError when NCCL refuses.
std::unique_ptr<Communicator> with_nccl(std::unique_ptr<Communicator> through_host, void* stream);

}  // namespace sl
