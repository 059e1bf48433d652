#include "kernels/cpu/low_rank.hpp"

#include <string>

#include "kernels/low_rank_products.hpp"
#include "kernels/shapes.hpp"

namespace sl {

LowRankRows::LowRankRows(const char* op, const Context& context, const LowRank& adapters, int64_t rows,
                         int64_t outputs, int64_t projections) {
  if (!adapters.defined()) return;
  const Dims dims = match_shapes(op, context.device,
                                 {{"adapters.low", adapters.low, "TL"},
                                  {"adapters.b", adapters.b, "NO"},
                                  {"adapters.ranges", adapters.ranges, "TB", DType::i32}},
                                 {{'T', rows}, {'O', 2 * outputs}, {'B', 2}});
  rank_ = 2 * dims['N'];
  require(dims['L'] == projections * rank_, std::string(op) + ": low and b of adapters differ in rank");
  low_ = rows_of(adapters.low);
  b_ = rows_of(adapters.b);
  ranges_ = adapters.ranges.data<int32_t>();
  for (int64_t t = 0; t < rows; ++t) {
    const int32_t begin = ranges_[2 * t], end = ranges_[2 * t + 1];
    require(0 <= begin && begin <= end && end <= rank_ && begin % 8 == 0 && end % 8 == 0,
            std::string(op) + ": a row of an adapter that is not there");
  }
}

void LowRankRows::add(int64_t t, int64_t projection, int64_t first, int64_t count, float* out) const {
  if (ranges_ == nullptr) return;
  const float* low = low_[t] + projection * rank_;
  for (int64_t r = ranges_[2 * t]; r < ranges_[2 * t + 1]; r += 2) {
    const float* b = b_[r / 2] + 2 * first;
    const float even = low[r], odd = low[r + 1];
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] += even * b[2 * i] + odd * b[2 * i + 1];
  }
}

template <>
void launch<Device::cpu>(const Context& context, const PackLowRank& op) {
  const int64_t outputs = op.b.rows(), rank = op.b.columns();
  const Dims dims = match_shapes("PackLowRank", context.device, {{"b", op.b, "OR"}, {"out", op.out, "NW"}},
                                 {{'W', 2 * outputs}});
  require(rank <= 2 * dims['N'], "PackLowRank: out has no room for the rank");
  const Rows b = rows_of(op.b), out = rows_of(op.out);
  for (int64_t pair = 0; pair < dims['N']; ++pair) {
    for (int64_t o = 0; o < outputs; ++o) {
      for (int64_t r = 2 * pair; r < 2 * pair + 2; ++r)
        out[pair][2 * o + r % 2] = r < rank ? op.scale * b[o][r] : 0.0F;
    }
  }
}

template <>
void launch<Device::cpu>(const Context& context, const LowRankBackwards& op) {
  for (const LowRankBackward& one : op.all) {
    const LowRankProducts products = products_of(context, one);
    launch<Device::cpu>(context, products.grad_b);
    launch<Device::cpu>(context, products.grad_low);
  }
}

}  // namespace sl
