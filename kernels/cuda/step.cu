// What a step of rollouts does besides the model. Both are bound by their launch.
#include "kernels/cuda/common.cuh"

namespace sl {
namespace {

__global__ void fill_in_tokens(int32_t* tokens, int64_t count, const int32_t* drawn, int64_t drawn_rows) {
  cuda::wait_for_previous();
  cuda::start_next();
  const int64_t t = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (t >= count || tokens[t] >= 0) return;
  const int64_t row = -1 - static_cast<int64_t>(tokens[t]);
  tokens[t] = row < drawn_rows ? max(drawn[row], 0) : 0;
}

__global__ void clear_rows(const int32_t* rows, uint32_t* out, int64_t stride, int64_t width, int64_t count) {
  cuda::wait_for_previous();
  cuda::start_next();
  const int64_t row = rows[blockIdx.x];
  if (row < 0 || row >= count) return;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) out[row * stride + i] = 0;
}

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const FillInTokens& op) {
  const Dims dims =
      match_shapes("FillInTokens", context.device,
                   {{"tokens", op.tokens, "T", DType::i32}, {"drawn", op.drawn, "R", DType::i32}});
  constexpr int threads = 128;
  cuda::launch_kernel(context, fill_in_tokens, static_cast<unsigned>(cuda::ceil_div(dims['T'], threads)),
                      threads, 0, op.tokens.data<int32_t>(), dims['T'], op.drawn.data<int32_t>(), dims['R']);
}

template <>
void launch<Device::cuda>(const Context& context, const ClearRows& op) {
  const Dims dims = match_shapes("ClearRows", context.device,
                                 {{"rows", op.rows, "N", DType::i32}, {"out", op.out, "SW", op.out.dtype()}});
  require(size_of(op.out.dtype()) == 4, "ClearRows: the numbers do not have 4 bytes");
  cuda::launch_kernel(context, clear_rows, static_cast<unsigned>(dims['N']), 256, 0, op.rows.data<int32_t>(),
                      static_cast<uint32_t*>(op.out.raw()), op.out.row_stride(), dims['W'], dims['S']);
}

}  // namespace sl
