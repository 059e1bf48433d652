// The best tokens of a row and their log-probabilities, for beam search.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/fast_exp.hpp"
#include "kernels/cpu/rows.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"
#include "kernels/unusable_logits.hpp"

namespace sl {
namespace {

struct ScoredToken {
  float score;
  int32_t token;
};

bool is_better(const ScoredToken& a, const ScoredToken& b) {
  return a.score != b.score ? a.score > b.score : a.token < b.token;
}

// False when the logits are not usable.
bool find_best(const BestTokens& op, int64_t row, std::vector<ScoredToken>& best) {
  const int64_t vocabulary = op.logits.columns(), wanted = op.tokens.columns();
  float* logits = rows_of(op.logits)[row];
  const float largest = largest_of(logits, vocabulary);
  const double sum = sum_of_exp(logits, vocabulary, largest);
  if (!std::isfinite(largest) || !std::isfinite(sum)) return false;
  const auto log_sum = static_cast<float>(static_cast<double>(largest) + std::log(sum));
  if (op.ban.data<int32_t>()[row] != 0) {
    const int32_t* banned = op.banned.data<int32_t>();
    for (int64_t i = 0; i < op.banned.dim(0); ++i)
      logits[banned[i]] = -std::numeric_limits<float>::infinity();
  }

  const int32_t slot = op.slots.data<int32_t>()[row];
  const uint32_t* const seen = slot < 0 ? nullptr : op.seen.data<uint32_t>() + slot * op.seen.row_stride();
  const float penalty = op.penalty.data<float>()[row];
  best.clear();  // a heap, the worst first
  for (int64_t token = 0; token < vocabulary; ++token) {
    ScoredToken here{logits[token] - log_sum, static_cast<int32_t>(token)};
    if (seen != nullptr && (seen[token / 32] >> (token % 32) & 1U) != 0) here.score *= penalty;
    if (std::ssize(best) == wanted) {
      if (!is_better(here, best.front())) continue;
      std::ranges::pop_heap(best, is_better);
      best.pop_back();
    }
    best.push_back(here);
    std::ranges::push_heap(best, is_better);
  }
  std::ranges::sort_heap(best, is_better);
  return true;
}

}  // namespace

template <>
void launch<Device::cpu>(const Context& context, const BestTokens& op) {
  const Dims dims = match_shapes("BestTokens", context.device,
                                 {{"logits", op.logits, "RV"},
                                  {"seen", op.seen, "SW", DType::u32},
                                  {"slots", op.slots, "R", DType::i32},
                                  {"penalty", op.penalty, "R"},
                                  {"banned", op.banned, "B", DType::i32},
                                  {"ban", op.ban, "R", DType::i32},
                                  {"tokens", op.tokens, "RN", DType::i32},
                                  {"scores", op.scores, "RN"}},
                                 {{'W', (op.logits.columns() + 31) / 32}});
  const int64_t rows = dims['R'], wanted = dims['N'];
  require(wanted > 0 && wanted <= std::min(dims['V'], most_best_tokens),
          "BestTokens: no tokens wanted, or more than there are");
  for (int64_t i = 0; i < dims['B']; ++i) {
    const int32_t token = op.banned.data<int32_t>()[i];
    require(token >= 0 && token < dims['V'], "BestTokens: a banned token outside the vocabulary");
  }
  for (int64_t row = 0; row < rows; ++row) {
    require(op.slots.data<int32_t>()[row] < dims['S'], "BestTokens: a slot outside the bitmap");
    require(op.penalty.data<float>()[row] > 0.0F, "BestTokens: a penalty out of range");
  }
  std::atomic<int64_t> unusable = -1;
#pragma omp parallel for schedule(dynamic) if (rows * dims['V'] > parallel_floats)
  for (int64_t row = 0; row < rows; ++row) {
    thread_local std::vector<ScoredToken> best;
    if (!find_best(op, row, best)) {
      unusable = row;
      continue;
    }
    for (int64_t i = 0; i < wanted; ++i) {
      op.tokens.data<int32_t>()[row * op.tokens.row_stride() + i] = best[static_cast<size_t>(i)].token;
      op.scores.data<float>()[row * op.scores.row_stride() + i] = best[static_cast<size_t>(i)].score;
    }
  }
  // An exception may not leave a parallel loop.
  if (unusable >= 0) throw unusable_logits();
}

}  // namespace sl
