// What a step of rollouts does besides the model: tokens drawn a moment ago, cleared and copied rows.
#include <algorithm>
#include <cstring>

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

template <>
void launch<Device::cpu>(const Context& context, const CopyRows& op) {
  const Dims dims = match_shapes(
      "CopyRows", context.device,
      {{"from", op.from, "N", DType::i32}, {"to", op.to, "N", DType::i32}, {"x", op.x, "SW", op.x.dtype()}});
  const int64_t width = dims['W'] * size_of(op.x.dtype());
  const auto row = [&](int32_t index) {
    require(index >= 0 && index < dims['S'], "CopyRows: a row outside the matrix");
    return static_cast<std::byte*>(op.x.raw()) + index * op.x.row_stride() * size_of(op.x.dtype());
  };
  for (int64_t i = 0; i < dims['N']; ++i) {
    const int32_t from = op.from.data<int32_t>()[i], to = op.to.data<int32_t>()[i];
    require(from != to, "CopyRows: a row copied to itself");
    std::memcpy(row(to), row(from), static_cast<size_t>(width));
  }
}

}  // namespace sl
