// Rows picked from, and added to, tables: token embeddings and the rows that need logits.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/rows.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {

template <>
void launch<Device::cpu>(const Context& context, const Embedding& op) {
  const Dims dims = match_shapes(
      "Embedding", context.device,
      {{"tokens", op.tokens, "T", DType::i32}, {"table", op.table, "VH"}, {"out", op.out, "TH"}});
  const int32_t* tokens = op.tokens.data<int32_t>();
  const Rows table = rows_of(op.table), out = rows_of(op.out);
  for (int64_t t = 0; t < dims['T']; ++t) {
    require(tokens[t] >= 0, "Embedding: a negative token");
    const int64_t row = tokens[t] - op.first_row;
    if (row >= 0 && row < dims['V']) {
      std::copy_n(table[row], dims['H'], out[t]);
    } else {
      std::fill_n(out[t], dims['H'], 0.0F);
    }
  }
}

template <>
void launch<Device::cpu>(const Context& context, const EmbeddingBackward& op) {
  const Dims dims = match_shapes("EmbeddingBackward", context.device,
                                 {{"tokens", op.tokens, "T", DType::i32},
                                  {"grad_out", op.grad_out, "TH"},
                                  {"grad_table", op.grad_table, "VH"}});
  const int32_t* tokens = op.tokens.data<int32_t>();
  const Rows grad_out = rows_of(op.grad_out), grad_table = rows_of(op.grad_table);
  for (int64_t t = 0; t < dims['T']; ++t) {
    const int64_t row = tokens[t] - op.first_row;
    if (row < 0 || row >= dims['V']) continue;
    const float* from = grad_out[t];
    float* to = grad_table[row];
    for (int64_t i = 0; i < dims['H']; ++i) to[i] += from[i];
  }
}

template <>
void launch<Device::cpu>(const Context& context, const GatherRows& op) {
  const Dims dims =
      match_shapes("GatherRows", context.device,
                   {{"x", op.x, "TH"}, {"indices", op.indices, "R", DType::i32}, {"out", op.out, "RH"}});
  const int32_t* indices = op.indices.data<int32_t>();
  const Rows x = rows_of(op.x), out = rows_of(op.out);
  for (int64_t i = 0; i < dims['R']; ++i) {
    require(indices[i] >= 0 && indices[i] < dims['T'], "GatherRows: an index outside x");
    std::copy_n(x[indices[i]], dims['H'], out[i]);
  }
}

template <>
void launch<Device::cpu>(const Context& context, const ScatterAddRows& op) {
  const Dims dims =
      match_shapes("ScatterAddRows", context.device,
                   {{"x", op.x, "RH"}, {"indices", op.indices, "R", DType::i32}, {"out", op.out, "TH"}});
  const int32_t* indices = op.indices.data<int32_t>();
  const Rows x = rows_of(op.x), out = rows_of(op.out);
  for (int64_t i = 0; i < dims['R']; ++i) {
    require(indices[i] >= 0 && indices[i] < dims['T'], "ScatterAddRows: an index outside out");
    const float* from = x[i];
    float* to = out[indices[i]];
    for (int64_t j = 0; j < dims['H']; ++j) to[j] += from[j];
  }
}

}  // namespace sl
