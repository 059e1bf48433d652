// What low-rank adapters add to the outputs of a linear layer (LowRank of ops.hpp), for the operations that
// read them.
#pragma once

#include <cstdint>

#include "kernels/cpu/rows.hpp"
#include "kernels/ops.hpp"

namespace sl {

class LowRankRows {
 public:
  // `op` names the operation in errors. The layer has `rows` rows of `outputs` numbers, of `projections`
  // projections. Without adapters add() does nothing.
  LowRankRows(const char* op, const Context& context, const LowRank& adapters, int64_t rows, int64_t outputs,
              int64_t projections);

  // out(i) += what row t's adapter adds to output first + i, for `count` outputs of one projection. The sum
  // is in order of the rank.
  void add(int64_t t, int64_t projection, int64_t first, int64_t count, float* out) const;

 private:
  Rows low_{nullptr, 0}, b_{nullptr, 0};
  const int32_t* ranges_ = nullptr;
  int64_t rank_ = 0;
};

}  // namespace sl
