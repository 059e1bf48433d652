// Low-rank adapters (Hu et al. 2021) on top of a linear layer: two launches, the products with a and with b.
// bf16 uses tensor cores (lora_products.cuh); f32, ranks that are not multiples of 8, and sizes or addresses
// that do not allow accesses of 16 bytes, use the plain kernels here. A batch of few rows is fastest when the
// scratch has room for eight low-rank rows a row.
#include "kernels/cuda/lora_products.cuh"

namespace sl {
namespace {

using namespace cuda;

// low(t) = x(t) x a^T: a block a row, a warp a number.
template <typename T>
__global__ void __launch_bounds__(256)
    shrink(const T* x, int64_t x_stride, int64_t n_in, const __grid_constant__ LowRankLayer<T> layer) {
  wait_for_previous();
  start_next();
  const int64_t t = blockIdx.x;
  const int which = layer.adapter_of(t);
  if (which < 0) return;
  const AdapterWeights<T>& w = layer.adapter[which];
  for (int r = static_cast<int>(threadIdx.x / 32); r < w.rank; r += static_cast<int>(blockDim.x / 32)) {
    const T *xt = x + t * x_stride, *a = w.a + r * w.a_stride;
    float sum = 0.0F;
    for (int64_t i = threadIdx.x % 32; i < n_in; i += 32) sum += to_float(xt[i]) * to_float(a[i]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) layer.low_row(0, t)[r] = sum;
  }
}

// out(t) += scale * low(t) x b^T
template <typename T, typename Out>
struct Expand {
  LowRankLayer<T> layer;
  Out* out;
  int64_t out_stride;

  template <int N>
  __device__ void at(int64_t row, int64_t column) const {
    static_assert(N == 1);
    const int which = layer.adapter_of(row);
    if (which < 0) return;
    const AdapterWeights<T>& w = layer.adapter[which];
    const float* low = layer.low_row(0, row);
    const T* b = w.b + column * w.b_stride;
    float sum = 0.0F;
    for (int r = 0; r < w.rank; ++r) sum += low[r] * to_float(b[r]);
    Out* place = out + row * out_stride + column;
    *place = from_float<Out>(to_float(*place) + w.scale * sum);
  }
};

// The adapters of the operation from `first` on, as many as one launch takes.
template <typename T>
LowRankLayer<T> layer_of(const Lora& op, int64_t first) {
  LowRankLayer<T> layer = {};
  layer.row_adapters = op.row_adapters.defined() ? op.row_adapters.data<int32_t>() : nullptr;
  layer.rows = op.x.rows();
  layer.first = static_cast<int>(first);
  const auto left = static_cast<int64_t>(op.adapters.size()) - first;
  layer.count = static_cast<int>(std::min<int64_t>(left, LowRankLayer<T>::most_adapters));
  for (int i = 0; i < layer.count; ++i) {
    const LoraWeights& w = op.adapters[static_cast<size_t>(first + i)];
    layer.adapter[i] = {
        pointer<T>(w.a), pointer<T>(w.b), w.a.row_stride(), w.b.row_stride(), static_cast<int>(w.a.rows()),
        w.scale};
  }
  layer.low = op.scratch.data<float>();
  layer.low_stride = static_cast<int>(op.scratch.row_stride());
  layer.parts = 1;
  return layer;
}

bool fits_tensor_cores(const Lora& op) {
  bool fits = op.x.dtype() == DType::bf16 && op.out.dtype() == DType::bf16 && op.x.columns() % 8 == 0 &&
              op.out.columns() % 8 == 0 && rows_aligned(8, {&op.x, &op.out}) && op.scratch.contiguous();
  for (const LoraWeights& w : op.adapters)
    fits = fits && w.a.rows() % 8 == 0 && rows_aligned(8, {&w.a, &w.b});
  return fits;
}

// Tiles of so many rows do not fill the card twice: their sums are cut into parts, if the scratch has room.
constexpr int64_t few_rows = 1024;

using ShrinkKernel = void (*)(lora::ShrinkWork);

// For tiles in pairs when there are many.
ShrinkKernel shrink_kernel(int64_t rank, bool few) {
  if (rank <= 8) return few ? lora::shrink_tiles<1, 1, 5> : lora::shrink_tiles<1, 2, 2>;
  if (rank <= 16) return few ? lora::shrink_tiles<2, 1, 3> : lora::shrink_tiles<2, 2, 2>;
  return few ? lora::shrink_tiles<4, 1, 2> : lora::shrink_tiles<4, 2, 1>;
}

void launch_products(const Context& context, const Lora& op, int64_t first, int64_t rank) {
  const int64_t tiles = ceil_div(op.x.rows(), lora::tile_rows), n_out = op.out.columns();
  lora::Layer layer = layer_of<bf16>(op, first);
  layer.low_stride = static_cast<int>(rank);
  const bool few = op.x.rows() <= few_rows && op.scratch.size() >= lora::most_parts * op.x.rows() * rank;
  if (few) layer.parts = lora::most_parts;

  lora::ShrinkWork shrink = {};
  shrink.x = pointer<bf16>(op.x);
  shrink.x_stride = op.x.row_stride();
  shrink.n_in = static_cast<int>(op.x.columns());
  shrink.layer = layer;
  launch_kernel(context, shrink_kernel(rank, few),
                dim3(static_cast<unsigned>(ceil_div(tiles, few ? 1 : 2) * layer.parts),
                     static_cast<unsigned>(ceil_div(rank, 32))),
                lora::threads, 0, shrink);

  lora::ExpandWork expand = {};
  const int64_t across = ceil_div(n_out, lora::group_columns * lora::warps);
  const int64_t most_tiles = std::max<int64_t>(1, 128 / rank);  // shared memory
  expand.tiles = static_cast<int>(std::clamp<int64_t>(tiles * across / (8 * context.cuda->multiprocessors), 1,
                                                      std::min<int64_t>(most_tiles, 4)));
  expand.rank = static_cast<int>(rank);
  expand.layer = layer;
  expand.out = pointer<bf16>(op.out);
  expand.out_stride = op.out.row_stride();
  expand.n_out = static_cast<int>(n_out);
  const int words = 2 * expand.tiles * lora::tile_rows * lora::StagedRows::stride_for(expand.rank);
  launch_kernel(context, layer.parts == 1 ? lora::expand_tiles<1> : lora::expand_tiles<lora::most_parts>,
                dim3(static_cast<unsigned>(across), static_cast<unsigned>(ceil_div(tiles, expand.tiles))),
                lora::threads, words * sizeof(uint32_t), expand);
}

template <typename T, typename Out>
void launch_plain(const Context& context, const Lora& op, int64_t first) {
  const LowRankLayer<T> layer = layer_of<T>(op, first);
  const int64_t rows = op.x.rows();
  launch_kernel(context, shrink<T>, static_cast<unsigned>(rows), 256, 0, pointer<T>(op.x), op.x.row_stride(),
                op.x.columns(), layer);
  for_each_element<1>(context, {rows, op.out.columns()}, false,
                      Expand<T, Out>{layer, pointer<Out>(op.out), op.out.row_stride()});
}

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const Lora& op) {
  const DType storage = op.x.dtype();
  match_shapes("Lora", context.device,
               {{"x", op.x, "TI", storage},
                {"out", op.out, "TO", op.out.dtype()},
                {"row_adapters", op.row_adapters, "T", DType::i32, true}});
  require(!op.adapters.empty() || op.row_adapters.defined() || op.x.rows() == 0,
          "Lora: rows of the first adapter, but there is none");
  int64_t rank = 0;
  for (const LoraWeights& w : op.adapters) {
    const Dims dims = match_shapes("Lora", context.device,
                                   {{"x", op.x, "TI", storage},
                                    {"out", op.out, "TO", op.out.dtype()},
                                    {"a", w.a, "RI", storage},
                                    {"b", w.b, "OR", storage},
                                    {"scratch", op.scratch, "US"}});
    require(dims['U'] >= dims['T'] && dims['S'] >= dims['R'], "Lora: the scratch is too small");
    rank = std::max(rank, dims['R']);
  }
  if (op.x.rows() == 0 || op.out.columns() == 0 || rank == 0) return;
  const bool fits = fits_tensor_cores(op);
  constexpr int64_t step = LowRankLayer<bf16>::most_adapters;
  for (int64_t first = 0; first < static_cast<int64_t>(op.adapters.size()); first += step) {
    if (fits) {
      launch_products(context, op, first, rank);
      continue;
    }
    with_element_types(storage, op.out.dtype(), [&](auto element, auto out_element) {
      launch_plain<decltype(element), decltype(out_element)>(context, op, first);
    });
  }
}

}  // namespace sl
