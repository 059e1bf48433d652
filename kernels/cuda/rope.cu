// Rotary position embedding in place on packed qkv rows, and the store of keys and values into pages.
//
// One block a row. Its threads first make the row's cosines and sines, once for all heads, and meanwhile the
// numbers to rotate are on their way; then each rotates N numbers of the first half of a head with those of
// the second half, and writes keys and values a second time, into their page. sincosf is the accurate one:
// angles reach 10^5.
//
// With adapters a thread first adds their part to its numbers; b of its columns (8 ranks) it has fetched
// while the product before still ran.
//
// Measured on one H100 80GB HBM3, 28 + 2 x 4 heads of 128, in a graph: RopeStoreKv 1.9 us for 1 row, 2.0 for
// 64, 2.6 for 256, 62 for 8,192 (2.56 TB/s; copy 3.02).
#include "kernels/cuda/low_rank.cuh"

namespace sl {
namespace {

using namespace cuda;

template <typename T>
struct RopeArguments {
  T* qkv;
  int64_t stride;
  const int32_t* positions;
  const float* frequencies;
  int heads, half;  // heads to rotate; half the numbers of a head
  float magnitude;
  bool inverse;
  // Pages (P, K, G, D) for the heads from first_key on, or nothing.
  const int32_t* slots;
  T *key_pages, *value_pages;
  int first_key, key_heads, page_tokens;
};

constexpr int most_threads = 512;

template <int N, typename T, typename Adapters>
__global__ void __launch_bounds__(most_threads)
    rope(const RopeArguments<T> a, const __grid_constant__ Adapters adapters) {
  extern __shared__ float angles[];  // cosines, then sines
  float *cosines = angles, *sines = angles + a.half;
  const int64_t t = blockIdx.x;
  const int parts = a.half / N;  // of a half head
  const int items = (a.slots == nullptr ? a.heads : a.heads + a.key_heads) * parts;
  T* row = a.qkv + t * a.stride;
  const auto column_of = [&](int item) { return (item / parts) * 2 * a.half + (item % parts) * N; };

  // The first item of each thread is loaded before the angles are made: usually it is the only one.
  float x[N], y[N], low[8];
  RankEight<N, T> b_x, b_y;
  RankRange range;
  if constexpr (adapted<Adapters>) range = adapters.range_of(t);
  const auto fetch = [&](int item, int rank) {
    if constexpr (adapted<Adapters>) {
      if (rank >= range.end) return;
      b_x.fetch(adapters, rank, column_of(item));
      b_y.fetch(adapters, rank, column_of(item) + a.half);
    }
  };
  const auto load_its_low = [&](int item, int rank) {
    if constexpr (adapted<Adapters>) {
      const int head = item / parts, projection = head < a.first_key ? 0 : head < a.heads ? 1 : 2;
      if (rank < range.end) load_low<N>(low, adapters.low_of(t, projection) + rank);
    }
  };
  const auto load_item = [&](int item) {
    load(x, row + column_of(item));
    load(y, row + column_of(item) + a.half);
    load_its_low(item, range.begin);
  };
  int item = static_cast<int>(threadIdx.x);
  if (item < items) fetch(item, range.begin);
  wait_for_previous();
  start_next();
  const float position = static_cast<float>(a.positions[t]);
  const int64_t slot = a.slots == nullptr ? -1 : a.slots[t];
  if (item < items) load_item(item);
  for (int i = static_cast<int>(threadIdx.x); i < a.half; i += blockDim.x) {
    float sine, cosine;
    sincosf(position * a.frequencies[i], &sine, &cosine);
    cosines[i] = a.magnitude * cosine;
    sines[i] = (a.inverse ? -a.magnitude : a.magnitude) * sine;
  }
  __syncthreads();
  while (item < items) {
    const int head = item / parts, column = (item % parts) * N;
    for (int rank = range.begin; rank < range.end; rank += 8) {
      if (rank > range.begin) {
        fetch(item, rank);
        load_its_low(item, rank);
      }
      b_x.add(x, low);
      b_y.add(y, low);
    }
    if (head < a.heads) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float c = cosines[column + i], s = sines[column + i], first = x[i];
        x[i] = first * c - y[i] * s;
        y[i] = y[i] * c + first * s;
      }
    }
    if (head < a.heads || range.begin < range.end) {
      store(row + column_of(item), x);
      store(row + column_of(item) + a.half, y);
    }
    if (slot >= 0 && head >= a.first_key) {
      const int kv_head = (head - a.first_key) % a.key_heads;
      T* pages = head < a.first_key + a.key_heads ? a.key_pages : a.value_pages;
      T* to = pages +
              ((slot / a.page_tokens * a.key_heads + kv_head) * a.page_tokens + slot % a.page_tokens) * 2 *
                  a.half +
              column;
      store(to, x);
      store(to + a.half, y);
    }
    item += static_cast<int>(blockDim.x);
    if (item >= items) return;
    fetch(item, range.begin);
    load_item(item);
  }
}

template <typename T, typename Adapters>
void launch_rope(const Context& context, int64_t rows, bool aligned, const RopeArguments<T>& arguments,
                 const Adapters& adapters) {
  constexpr int n = elements_at_once<T>;
  const bool wide = aligned && arguments.half % n == 0;
  const int64_t items = (arguments.heads + int64_t{arguments.key_heads}) * arguments.half / (wide ? n : 1);
  const int64_t threads = std::clamp<int64_t>(ceil_div(items, 32) * 32, 64, most_threads);
  launch_kernel(context, wide ? rope<n, T, Adapters> : rope<1, T, Adapters>, static_cast<unsigned>(rows),
                static_cast<unsigned>(threads), static_cast<size_t>(arguments.half) * 2 * sizeof(float),
                arguments, adapters);
}

}  // namespace

template <>
void launch<Device::cuda>(const Context& context, const Rope& op) {
  const Dims dims = match_shapes("Rope", context.device,
                                 {{"qkv", op.qkv, "TW", op.qkv.dtype()},
                                  {"positions", op.positions, "T", DType::i32},
                                  {"frequencies", op.frequencies, "E"}},
                                 {{'E', op.head_dim / 2}});
  require(op.head_dim % 2 == 0 && op.heads >= 0 && op.heads * op.head_dim <= dims['W'],
          "Rope: the heads to rotate do not fit the row");
  with_element_type(op.qkv.dtype(), [&](auto element) {
    using T = decltype(element);
    launch_rope<T>(context, dims['T'], rows_aligned(elements_at_once<T>, {&op.qkv}),
                   {.qkv = pointer<T>(op.qkv),
                    .stride = op.qkv.row_stride(),
                    .positions = op.positions.data<int32_t>(),
                    .frequencies = op.frequencies.data<float>(),
                    .heads = static_cast<int>(op.heads),
                    .half = static_cast<int>(dims['E']),
                    .magnitude = op.magnitude,
                    .inverse = op.inverse},
                   NoAdapters{});
  });
}

template <>
void launch<Device::cuda>(const Context& context, const RopeStoreKv& op) {
  const DType storage = op.qkv.dtype();
  const Dims dims = match_shapes("RopeStoreKv", context.device,
                                 {{"qkv", op.qkv, "TW", storage},
                                  {"positions", op.positions, "T", DType::i32},
                                  {"slots", op.slots, "T", DType::i32},
                                  {"key_pages", op.key_pages, "PKGD", storage},
                                  {"value_pages", op.value_pages, "PKGD", storage},
                                  {"frequencies", op.frequencies, "E"}});
  const int64_t key_heads = dims['K'], head_dim = dims['D'], heads = dims['W'] / head_dim - key_heads;
  require(heads >= key_heads && (heads + key_heads) * head_dim == dims['W'],
          "RopeStoreKv: a row of qkv is not whole heads with keys and values");
  require(2 * dims['E'] == head_dim, "RopeStoreKv: frequencies are not half a head");
  with_element_type(storage, [&](auto element) {
    using T = decltype(element);
    const bool aligned = rows_aligned(elements_at_once<T>, {&op.qkv, &op.key_pages, &op.value_pages}) &&
                         rows_aligned(8, op.adapters);
    const RopeArguments<T> arguments = {.qkv = pointer<T>(op.qkv),
                                        .stride = op.qkv.row_stride(),
                                        .positions = op.positions.data<int32_t>(),
                                        .frequencies = op.frequencies.data<float>(),
                                        .heads = static_cast<int>(heads),
                                        .half = static_cast<int>(dims['E']),
                                        .magnitude = op.magnitude,
                                        .inverse = false,
                                        .slots = op.slots.data<int32_t>(),
                                        .key_pages = pointer<T>(op.key_pages),
                                        .value_pages = pointer<T>(op.value_pages),
                                        .first_key = static_cast<int>(heads - key_heads),
                                        .key_heads = static_cast<int>(key_heads),
                                        .page_tokens = static_cast<int>(dims['G'])};
    if (!op.adapters.defined()) return launch_rope<T>(context, dims['T'], aligned, arguments, NoAdapters{});
    launch_rope<T>(context, dims['T'], aligned, arguments,
                   layer_of<T>("RopeStoreKv", context, op.adapters, storage, dims['T'], dims['W'], 3));
  });
}

}  // namespace sl
