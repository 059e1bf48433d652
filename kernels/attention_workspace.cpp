#include "kernels/ops.hpp"
#if SELFLENGTHEN_CUDA
#include "kernels/cuda/paged_attention.hpp"
#endif

namespace sl {

AttentionWorkspace attention_workspace([[maybe_unused]] Device device, [[maybe_unused]] int64_t rows,
                                       [[maybe_unused]] int64_t sequences, [[maybe_unused]] int64_t positions,
                                       [[maybe_unused]] int64_t query_heads,
                                       [[maybe_unused]] int64_t key_heads,
                                       [[maybe_unused]] int64_t head_dim) {
#if SELFLENGTHEN_CUDA
  if (device == Device::cuda)
    return cuda_attention_workspace(rows, sequences, positions, query_heads, key_heads, head_dim);
#endif
  return {};
}

}  // namespace sl
