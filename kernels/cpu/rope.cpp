// Rotary position embedding in place on packed qkv rows, and the store of keys and values into pages.
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/low_rank.hpp"
#include "kernels/cpu/rows.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {
namespace {

struct Rotation {
  const int32_t* positions;
  const float* frequencies;
  int64_t heads, head_dim;
  float magnitude;
  bool inverse;
};

void rotate(const Rows& qkv, int64_t rows, const Rotation& by) {
  const int64_t half = by.head_dim / 2;
#pragma omp parallel if (rows * by.heads * by.head_dim > parallel_floats)
  {
    thread_local std::vector<float> angles;
    angles.resize(static_cast<size_t>(2 * half));
    float *cosines = angles.data(), *sines = cosines + half;
#pragma omp for
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(by.positions[t]) * by.frequencies[i];
        cosines[i] = by.magnitude * std::cos(angle);
        sines[i] = (by.inverse ? -by.magnitude : by.magnitude) * std::sin(angle);
      }
      for (int64_t head = 0; head < by.heads; ++head) {
        float* first = qkv[t] + head * by.head_dim;
        float* second = first + half;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          const float x = first[i], y = second[i];
          first[i] = x * cosines[i] - y * sines[i];
          second[i] = y * cosines[i] + x * sines[i];
        }
      }
    }
  }
}

}  // namespace

template <>
void launch<Device::cpu>(const Context& context, const Rope& op) {
  const Dims dims = match_shapes("Rope", context.device,
                                 {{"qkv", op.qkv, "TW"},
                                  {"positions", op.positions, "T", DType::i32},
                                  {"frequencies", op.frequencies, "E"}},
                                 {{'E', op.head_dim / 2}});
  require(op.head_dim % 2 == 0 && op.heads >= 0 && op.heads * op.head_dim <= dims['W'],
          "Rope: the heads to rotate do not fit the row");
  rotate(rows_of(op.qkv), dims['T'],
         {op.positions.data<int32_t>(), op.frequencies.data<float>(), op.heads, op.head_dim, op.magnitude,
          op.inverse});
}

template <>
void launch<Device::cpu>(const Context& context, const RopeStoreKv& op) {
  const Dims dims = match_shapes("RopeStoreKv", context.device,
                                 {{"qkv", op.qkv, "TW"},
                                  {"positions", op.positions, "T", DType::i32},
                                  {"slots", op.slots, "T", DType::i32},
                                  {"key_pages", op.key_pages, "PKGD"},
                                  {"value_pages", op.value_pages, "PKGD"},
                                  {"frequencies", op.frequencies, "E"}});
  const int64_t heads = dims['K'], page_tokens = dims['G'], head_dim = dims['D'];
  const int64_t key_begin = dims['W'] - 2 * heads * head_dim, value_begin = key_begin + heads * head_dim;
  require(key_begin >= 0 && head_dim > 0 && value_begin % head_dim == 0,
          "RopeStoreKv: a row of qkv is not whole heads with keys and values");
  require(2 * dims['E'] == head_dim, "RopeStoreKv: frequencies are not half a head");
  const Rows qkv = rows_of(op.qkv);
  const LowRankRows adapters("RopeStoreKv", context, op.adapters, dims['T'], dims['W'], 3);
  const int64_t adapted = op.adapters.defined() ? dims['T'] : 0;
#pragma omp parallel for if (adapted * dims['W'] > parallel_floats)
  for (int64_t t = 0; t < adapted; ++t) {
    adapters.add(t, 0, 0, key_begin, qkv[t]);
    adapters.add(t, 1, key_begin, value_begin - key_begin, qkv[t] + key_begin);
    adapters.add(t, 2, value_begin, dims['W'] - value_begin, qkv[t] + value_begin);
  }
  rotate(qkv, dims['T'],
         {op.positions.data<int32_t>(), op.frequencies.data<float>(), value_begin / head_dim, head_dim,
          op.magnitude, false});
  const int32_t* slots = op.slots.data<int32_t>();
  float *keys = op.key_pages.data<float>(), *values = op.value_pages.data<float>();
  const size_t bytes = static_cast<size_t>(head_dim) * sizeof(float);
  for (int64_t t = 0; t < dims['T']; ++t) {
    if (slots[t] < 0) continue;
    require(slots[t] < dims['P'] * page_tokens, "RopeStoreKv: a slot outside the pages");
    const int64_t page = slots[t] / page_tokens, offset = slots[t] % page_tokens;
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t to = ((page * heads + head) * page_tokens + offset) * head_dim;
      const float* key = qkv[t] + key_begin + head * head_dim;
      std::memcpy(keys + to, key, bytes);
      std::memcpy(values + to, key + heads * head_dim, bytes);
    }
  }
}

}  // namespace sl
