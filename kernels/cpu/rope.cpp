// Rotary position embedding in place on packed qkv rows, and the store of keys and values into pages.
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cpu/rows.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {

template <>
void launch<Device::cpu>(const Context& context, const Rope& op) {
  const Dims dims = match_shapes("Rope", context.device,
                                 {{"qkv", op.qkv, "TW"},
                                  {"positions", op.positions, "T", DType::i32},
                                  {"frequencies", op.frequencies, "E"}},
                                 {{'E', op.head_dim / 2}});
  require(op.head_dim % 2 == 0 && op.heads >= 0 && op.heads * op.head_dim <= dims['W'],
          "Rope: the heads to rotate do not fit the row");
  const Rows qkv = rows_of(op.qkv);
  const int32_t* positions = op.positions.data<int32_t>();
  const float* frequencies = op.frequencies.data<float>();
  const int64_t half = op.head_dim / 2;
#pragma omp parallel if (dims['T'] * op.heads * op.head_dim > parallel_floats)
  {
    thread_local std::vector<float> angles;
    angles.resize(static_cast<size_t>(2 * half));
    float *cosines = angles.data(), *sines = cosines + half;
#pragma omp for
    for (int64_t t = 0; t < dims['T']; ++t) {
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(positions[t]) * frequencies[i];
        cosines[i] = op.magnitude * std::cos(angle);
        sines[i] = (op.inverse ? -op.magnitude : op.magnitude) * std::sin(angle);
      }
      for (int64_t head = 0; head < op.heads; ++head) {
        float* first = qkv[t] + head * op.head_dim;
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

template <>
void launch<Device::cpu>(const Context& context, const StoreKv& op) {
  const Dims dims = match_shapes("StoreKv", context.device,
                                 {{"qkv", op.qkv, "TW"},
                                  {"slots", op.slots, "T", DType::i32},
                                  {"key_pages", op.key_pages, "PKGD"},
                                  {"value_pages", op.value_pages, "PKGD"}});
  const int64_t heads = dims['K'], page_tokens = dims['G'], head_dim = dims['D'];
  const int64_t key_begin = dims['W'] - 2 * heads * head_dim;
  require(key_begin >= 0, "StoreKv: a row of qkv is shorter than its keys and values");
  const Rows qkv = rows_of(op.qkv);
  const int32_t* slots = op.slots.data<int32_t>();
  float *keys = op.key_pages.data<float>(), *values = op.value_pages.data<float>();
  const size_t bytes = static_cast<size_t>(head_dim) * sizeof(float);
  for (int64_t t = 0; t < dims['T']; ++t) {
    if (slots[t] < 0) continue;
    require(slots[t] < dims['P'] * page_tokens, "StoreKv: a slot outside the pages");
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
