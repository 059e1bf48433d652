// What a step of rollouts does besides the model. The first two are bound by their launch.
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

// A block copies a part of one row, of `width` units.
constexpr int copy_threads = 256, copied_by_thread = 4;

template <typename Unit>
__global__ void copy_rows(const int32_t* from, const int32_t* to, Unit* x, int64_t stride, int64_t width,
                          int64_t count) {
  cuda::wait_for_previous();
  cuda::start_next();
  const int64_t source = from[blockIdx.x], target = to[blockIdx.x];
  if (source < 0 || source >= count || target < 0 || target >= count) return;
  const int64_t begin = int64_t{blockIdx.y} * copy_threads * copied_by_thread + threadIdx.x;
#pragma unroll
  for (int i = 0; i < copied_by_thread; ++i) {
    const int64_t at = begin + i * copy_threads;
    if (at < width) x[target * stride + at] = x[source * stride + at];
  }
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

template <>
void launch<Device::cuda>(const Context& context, const CopyRows& op) {
  const Dims dims = match_shapes(
      "CopyRows", context.device,
      {{"from", op.from, "N", DType::i32}, {"to", op.to, "N", DType::i32}, {"x", op.x, "SW", op.x.dtype()}});
  const int64_t size = size_of(op.x.dtype()), width = dims['W'] * size, stride = op.x.row_stride() * size;
  const auto copy_in = [&](auto unit) {
    using Unit = decltype(unit);
    constexpr int64_t bytes = sizeof(Unit);
    const auto parts = cuda::ceil_div(width / bytes, copy_threads * copied_by_thread);
    cuda::launch_kernel(context, copy_rows<Unit>,
                        dim3(static_cast<unsigned>(dims['N']), static_cast<unsigned>(parts)), copy_threads, 0,
                        op.from.data<int32_t>(), op.to.data<int32_t>(), static_cast<Unit*>(op.x.raw()),
                        stride / bytes, width / bytes, dims['S']);
  };
  const auto fits = [&](int64_t bytes) {
    return width % bytes == 0 && stride % bytes == 0 &&
           reinterpret_cast<uintptr_t>(op.x.raw()) % static_cast<uintptr_t>(bytes) == 0;
  };
  if (fits(16)) return copy_in(uint4{});
  if (fits(4)) return copy_in(uint32_t{});
  copy_in(uint16_t{});
}

}  // namespace sl
