// Preparation of low-rank adapters: done once when adapters change.
#include "kernels/cuda/low_rank.cuh"

namespace sl {
namespace {

using namespace cuda;

template <typename T>
struct PackPairs {
  const T* b;
  int64_t b_stride;
  int64_t rank;
  float scale;
  T* out;
  int64_t out_stride;

  // Both numbers of a pair for one output.
  template <int N>
  __device__ void at(int64_t pair, int64_t output) const {
    static_assert(N == 1);
    for (int i = 0; i < 2; ++i) {
      const int64_t r = 2 * pair + i;
      const float value = r < rank ? scale * to_float(b[output * b_stride + r]) : 0.0F;
      out[pair * out_stride + 2 * output + i] = from_float<T>(value);
    }
  }
};

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const PackLowRank& op) {
  const DType storage = op.b.dtype();
  const int64_t outputs = op.b.rows();
  const Dims dims =
      match_shapes("PackLowRank", context.device,
                   {{"b", op.b, "OR", storage}, {"out", op.out, "NW", storage}}, {{'W', 2 * outputs}});
  require(dims['R'] <= 2 * dims['N'], "PackLowRank: out has no room for the rank");
  with_element_type(storage, [&](auto element) {
    using T = decltype(element);
    for_each_element<1>(context, {dims['N'], outputs}, false,
                        PackPairs<T>{pointer<T>(op.b), op.b.row_stride(), dims['R'], op.scale,
                                     pointer<T>(op.out), op.out.row_stride()});
  });
}

}  // namespace sl
