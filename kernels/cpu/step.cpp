// What a step of rollouts does besides the model: tokens drawn a moment ago, cleared rows of the bitmap.
#include <algorithm>

#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {

template <>
void launch<Device::cpu>(const Context& context, const FillInTokens& op) {
  const Dims dims =
      match_shapes("FillInTokens", context.device,
                   {{"tokens", op.tokens, "T", DType::i32}, {"drawn", op.drawn, "R", DType::i32}});
  int32_t* tokens = op.tokens.data<int32_t>();
  for (int64_t t = 0; t < dims['T']; ++t) {
    if (tokens[t] >= 0) continue;
    const int64_t row = -1 - static_cast<int64_t>(tokens[t]);
    require(row < dims['R'], "FillInTokens: a row that the step before did not draw");
    tokens[t] = op.drawn.data<int32_t>()[row];
  }
}

template <>
void launch<Device::cpu>(const Context& context, const ClearRows& op) {
  const Dims dims = match_shapes("ClearRows", context.device,
                                 {{"rows", op.rows, "N", DType::i32}, {"out", op.out, "SW", op.out.dtype()}});
  require(size_of(op.out.dtype()) == 4, "ClearRows: the numbers do not have 4 bytes");
  for (int64_t i = 0; i < dims['N']; ++i) {
    const int32_t row = op.rows.data<int32_t>()[i];
    require(row >= 0 && row < dims['S'], "ClearRows: a row outside the matrix");
    std::fill_n(static_cast<uint32_t*>(op.out.raw()) + row * op.out.row_stride(), dims['W'], 0U);
  }
}

}  // namespace sl
