// Cross-entropy over a slice of the vocabulary: what its rank contributes to the loss, and the gradient.
#include <algorithm>

#include "kernels/cpu/fast_exp.hpp"
#include "kernels/cpu/rows.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {

template <>
void launch<Device::cpu>(const Context& context, const CrossEntropyStats& op) {
  const Dims dims = match_shapes("CrossEntropyStats", context.device,
                                 {{"logits", op.logits, "RV"},
                                  {"targets", op.targets, "R", DType::i32},
                                  {"row_max", op.row_max, "R"},
                                  {"row_sum", op.row_sum, "R"},
                                  {"target_logit", op.target_logit, "R"}});
  const int64_t vocabulary = dims['V'];
  const Rows logits = rows_of(op.logits);
  const int32_t* targets = op.targets.data<int32_t>();
  float *row_max = op.row_max.data<float>(), *row_sum = op.row_sum.data<float>();
  float* target_logit = op.target_logit.data<float>();
#pragma omp parallel for if (op.logits.size() > parallel_floats)
  for (int64_t i = 0; i < dims['R']; ++i) {
    row_max[i] = largest_of(logits[i], vocabulary);
    row_sum[i] = static_cast<float>(sum_of_exp(logits[i], vocabulary, row_max[i]));
    const int64_t target = targets[i] - op.first_row;
    const bool here = targets[i] >= 0 && target >= 0 && target < vocabulary;
    target_logit[i] = here ? logits[i][target] : 0.0F;
  }
}

template <>
void launch<Device::cpu>(const Context& context, const CrossEntropyGradient& op) {
  const Dims dims = match_shapes("CrossEntropyGradient", context.device,
                                 {{"logits", op.logits, "RV"},
                                  {"targets", op.targets, "R", DType::i32},
                                  {"log_sum_exp", op.log_sum_exp, "R"},
                                  {"weights", op.weights, "R"},
                                  {"out", op.out, "RV"}});
  const int64_t vocabulary = dims['V'];
  const Rows logits = rows_of(op.logits), out = rows_of(op.out);
  const int32_t* targets = op.targets.data<int32_t>();
  const float *log_sum_exp = op.log_sum_exp.data<float>(), *weights = op.weights.data<float>();
#pragma omp parallel for if (op.logits.size() > parallel_floats)
  for (int64_t i = 0; i < dims['R']; ++i) {
    float* row = out[i];
    if (row != logits[i]) std::copy_n(logits[i], vocabulary, row);
    exp_in_place(row, vocabulary, log_sum_exp[i]);
    for (int64_t j = 0; j < vocabulary; ++j) row[j] *= weights[i];
    const int64_t target = targets[i] - op.first_row;
    if (targets[i] >= 0 && target >= 0 && target < vocabulary) row[target] -= weights[i];
  }
}

}  // namespace sl
