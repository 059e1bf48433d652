// TrainingPass, head and loss: only rows with a target, in chunks, so that their logits stay small. The
// vocabulary is shared out over the tensor-parallel ranks; no rank sees the logits of another.
#include <algorithm>
#include <cmath>
#include <span>

#include "kernels/device.hpp"
#include "kernels/ops.hpp"
#include "model/linear.hpp"
#include "model/training_pass.hpp"

namespace sl {

LossSums TrainingPass::head(const Trainable* gradients) {
  const ProfilerRange range("head and loss");
  const auto count = static_cast<int64_t>(host_target_tokens_.size());
  const int64_t mark = arena_.mark();
  // Chunks have the rows of all ranks: the vocabulary is what is shared out.
  const Tensor last = gathered(residual(model_.config->layers));
  const Tensor gradient = gradients == nullptr || alone() ? gradient_ : take_padded(DType::f32);
  if (gradients != nullptr) run(model_.context, Fill{gradient, 0.0F});
  // Chunks of one size, so that their products are of one kind.
  const int64_t chunks = (count + chunk_rows_ - 1) / chunk_rows_;
  for (int64_t i = 0; i < chunks; ++i) {
    head_chunk(count * i / chunks, count * (i + 1) / chunks, last, gradients, gradient);
  }
  if (gradients != nullptr && !alone()) {
    const int64_t begin = model_.shard->tp_rank * own_rows_;
    run(model_.context, Copy{gradient.rows(begin, begin + own_rows_), gradient_});
  }
  arena_.release(mark);
  LossSums sums;
  sums.target_rows = count;
  for (size_t i = 0; i < log_probabilities_.size(); ++i) {
    sums.loss_sum -= static_cast<double>(host_target_weights_[i]) * log_probabilities_[i];
  }
  return sums;
}

// To `gradient` is added that of `last`, the residual after the last layer.
void TrainingPass::head_chunk(int64_t begin, int64_t end, const Tensor& last, const Trainable* gradients,
                              const Tensor& gradient) {
  const Context& context = model_.context;
  const Parameters& weights = *model_.parameters;
  const int64_t hidden = model_.config->hidden;
  const int64_t first_row = model_.shard->vocabulary.begin;
  const int64_t count = end - begin;
  const int64_t mark = arena_.mark();
  const Tensor rows = target_rows_.rows(begin, end);
  const Tensor targets = target_tokens_.rows(begin, end);
  const Tensor x = take_f32(count, hidden);
  run(context, GatherRows{.x = last, .indices = rows, .out = x});
  const Tensor normed = normalised(x, weights.final_norm);
  const Tensor logits = take_f32(count, vocabulary_);
  linear(context, normed, weights.head, logits);
  const Tensor normaliser = log_sum_exp(logits, targets, begin);
  if (gradients != nullptr) {
    const bool in_place = context.storage == DType::f32;
    const Tensor grad_logits = in_place ? logits : take(count, vocabulary_);
    run(context, CrossEntropyGradient{.logits = logits,
                                      .targets = targets,
                                      .first_row = first_row,
                                      .log_sum_exp = normaliser,
                                      .weights = target_weights_.rows(begin, end),
                                      .out = grad_logits});
    const Parameters* full = gradients->parameters;
    if (full != nullptr) linear_weight_gradient(context, grad_logits, normed, full->head);
    const Tensor grad_normed = take(count, hidden);
    linear_input_gradient(context, grad_logits, weights.head, grad_normed);
    reduce(grad_normed);
    const Tensor grad_x = take_f32(count, hidden);
    run(context, Fill{grad_x, 0.0F});
    // Every rank has all rows here, and finish_gradients() adds up what the ranks have of a norm's weight.
    const bool learns_norm = full != nullptr && model_.shard->tp_rank == 0;
    run(context, RmsNormBackward{.x = x,
                                 .weight = weights.final_norm,
                                 .epsilon = model_.config->rms_epsilon,
                                 .grad_out = grad_normed,
                                 .grad_x = grad_x,
                                 .grad_weight = learns_norm ? full->final_norm : Tensor()});
    run(context, ScatterAddRows{.x = grad_x, .indices = rows, .out = gradient});
  }
  arena_.release(mark);
}

// log sum exp over the whole vocabulary of each row (a tensor of the arena); notes the log-probabilities of
// the targets from `begin` on. Combined on the host in rank order, so that every rank has the same bits.
Tensor TrainingPass::log_sum_exp(const Tensor& logits, const Tensor& targets, int64_t begin) {
  const int64_t count = logits.rows();
  const int tp = model_.shard->tp;
  const Tensor own = arena_.take(DType::f32, {3, count});  // largest, sum, target's logit
  run(model_.context, CrossEntropyStats{.logits = logits,
                                        .targets = targets,
                                        .first_row = model_.shard->vocabulary.begin,
                                        .row_max = own.at(0),
                                        .row_sum = own.at(1),
                                        .target_logit = own.at(2)});
  Tensor all = own;
  if (tp > 1) {
    all = arena_.take(DType::f32, {tp, 3, count});
    model_.tensor_parallel->all_gather(own, all);
  }
  host_stats_.resize(static_cast<size_t>(all.size()));
  copy_to_host(host_stats_.data(), all, all.bytes());
  host_log_sum_exp_.resize(static_cast<size_t>(count));
  for (int64_t row = 0; row < count; ++row) {
    const auto stat = [&](int rank, int which) {
      return static_cast<double>(host_stats_[static_cast<size_t>((rank * 3 + which) * count + row)]);
    };
    double largest = stat(0, 0);
    for (int rank = 1; rank < tp; ++rank) largest = std::max(largest, stat(rank, 0));
    double sum = 0.0;
    double target = 0.0;
    for (int rank = 0; rank < tp; ++rank) {
      sum += stat(rank, 1) * std::exp(stat(rank, 0) - largest);
      target += stat(rank, 2);
    }
    const double normaliser = largest + std::log(sum);
    host_log_sum_exp_[static_cast<size_t>(row)] = static_cast<float>(normaliser);
    log_probabilities_[static_cast<size_t>(begin + row)] = target - normaliser;
  }
  const Tensor out = arena_.take(DType::f32, {count});
  upload(out, std::span<const float>(host_log_sum_exp_));
  return out;
}

}  // namespace sl
