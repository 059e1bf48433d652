// Drawing tokens. Nothing sorts the vocabulary: maxima of blocks of logits bound the k-th largest from below,
// so that only the blocks that reach it are looked at again; a nucleus is found by halving.
#include <algorithm>
#include <atomic>
#include <functional>
#include <limits>
#include <vector>

#include "core/rng.hpp"
#include "kernels/cpu/fast_exp.hpp"
#include "kernels/cpu/rows.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"
#include "kernels/unusable_logits.hpp"

namespace sl {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr int64_t block_tokens = 64;

struct Candidate {
  float logit;
  int32_t token;
  float weight;  // exp(logit - largest logit)
};

// Larger logits first, smaller ids first among equals.
bool before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// What one thread needs.
struct Workspace {
  std::vector<float> block_maxima, sorted_maxima;
  std::vector<Candidate> candidates;
};

void penalize(float* logits, int64_t vocabulary, const uint32_t* seen, float penalty) {
  for (int64_t word = 0; word * 32 < vocabulary; ++word) {
    for (uint32_t bits = seen[word]; bits != 0; bits &= bits - 1) {
      const int64_t token = word * 32 + __builtin_ctz(bits);
      if (token >= vocabulary) return;
      float& logit = logits[token];
      logit = logit > 0.0F ? logit / penalty : logit * penalty;
    }
  }
}

// Divides the logits by the temperature, noting the largest of each block. False when one is NaN or
// +infinity, or all are -infinity: the model has lost its way.
bool scale_and_bound(float* logits, int64_t vocabulary, float temperature, std::vector<float>& block_maxima) {
  block_maxima.resize(static_cast<size_t>((vocabulary + block_tokens - 1) / block_tokens));
  int bad = 0;
  float largest = -infinity;
  for (size_t block = 0; block < block_maxima.size(); ++block) {
    const int64_t begin = static_cast<int64_t>(block) * block_tokens;
    const int64_t end = std::min(begin + block_tokens, vocabulary);
#pragma omp simd reduction(| : bad)
    for (int64_t i = begin; i < end; ++i) {
      logits[i] /= temperature;
      bad |= logits[i] < infinity ? 0 : 1;
    }
    block_maxima[block] = largest_of(logits + begin, end - begin);
    largest = std::max(largest, block_maxima[block]);
  }
  return bad == 0 && largest > -infinity;
}

// The tokens whose logit is at least the k-th largest: k of them, or more when the k-th has equals.
void keep_top_k(const float* logits, int64_t vocabulary, int64_t k, Workspace& work) {
  // The k largest maxima of blocks are k logits: the k-th largest logit is not below the least of them.
  float bound = -infinity;
  if (static_cast<size_t>(k) <= work.block_maxima.size()) {
    work.sorted_maxima = work.block_maxima;
    const auto kth = work.sorted_maxima.begin() + (k - 1);
    std::nth_element(work.sorted_maxima.begin(), kth, work.sorted_maxima.end(), std::greater<>());
    bound = *kth;
  }
  work.candidates.clear();
  for (size_t block = 0; block < work.block_maxima.size(); ++block) {
    if (work.block_maxima[block] < bound) continue;
    const int64_t begin = static_cast<int64_t>(block) * block_tokens;
    for (int64_t i = begin; i < std::min(begin + block_tokens, vocabulary); ++i) {
      if (logits[i] >= bound) work.candidates.push_back({logits[i], static_cast<int32_t>(i), 0.0F});
    }
  }
  const auto by_logit = [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; };
  const auto kth = work.candidates.begin() + (k - 1);
  std::nth_element(work.candidates.begin(), kth, work.candidates.end(), by_logit);
  const float least = kth->logit;
  std::erase_if(work.candidates, [least](const Candidate& c) { return c.logit < least; });
}

void keep_all(const float* logits, int64_t vocabulary, std::vector<Candidate>& candidates) {
  candidates.resize(static_cast<size_t>(vocabulary));
  for (int64_t i = 0; i < vocabulary; ++i)
    candidates[static_cast<size_t>(i)] = {logits[i], static_cast<int32_t>(i), 0.0F};
}

// Fills in the weights; returns their sum.
double weigh(std::vector<Candidate>& candidates, float largest) {
  double total = 0.0;
  float part[lanes] = {};
  for (size_t begin = 0; begin < candidates.size(); begin += lanes) {
    const size_t n = std::min<size_t>(lanes, candidates.size() - begin);
    for (size_t i = 0; i < n; ++i) part[i] = candidates[begin + i].logit - largest;
    store(part, fast_exp(load(part)));
    for (size_t i = 0; i < n; ++i) {
      candidates[begin + i].weight = part[i];
      total += static_cast<double>(part[i]);
    }
  }
  return total;
}

// Keeps the smallest set of largest candidates whose weights reach `wanted`; returns their sum. Halves the
// range that holds the border until it is short.
double keep_nucleus(std::vector<Candidate>& candidates, double wanted) {
  double above = 0.0;
  auto begin = candidates.begin(), end = candidates.end();
  while (end - begin > 32) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, before);
    double upper = 0.0;
    for (auto c = begin; c != middle; ++c) upper += static_cast<double>(c->weight);
    if (above + upper >= wanted) {
      end = middle;
    } else {
      above += upper;
      begin = middle;
    }
  }
  std::sort(begin, end, before);
  do {
    above += static_cast<double>(begin->weight);
    ++begin;
  } while (begin != end && above < wanted);
  candidates.erase(begin, candidates.end());
  return above;
}

// Leaves in work.candidates the tokens that pass top-k and top-p, in order of id, with their weights; returns
// the sum of those.
double keep_filtered(const float* logits, int64_t vocabulary, float largest, int64_t top_k, double top_p,
                     Workspace& work) {
  std::vector<Candidate>& kept = work.candidates;
  const auto by_id = [](const Candidate& a, const Candidate& b) { return a.token < b.token; };
  double total = 0.0;
  if (top_k > 0 && top_k < vocabulary) {
    keep_top_k(logits, vocabulary, top_k, work);
    total = weigh(kept, largest);
    if (top_p < 1.0) total = keep_nucleus(kept, top_p * total);
    std::sort(kept.begin(), kept.end(), by_id);
    return total;
  }
  if (top_p >= 1.0) {
    keep_all(logits, vocabulary, kept);
    return weigh(kept, largest);
  }
  // The nucleus rarely holds more than a few tokens: look at the whole vocabulary only if it does.
  constexpr int64_t likely_enough = 512;
  const double wanted = top_p * sum_of_exp(logits, vocabulary, largest);
  bool enough = false;
  if (likely_enough < vocabulary) {
    keep_top_k(logits, vocabulary, likely_enough, work);
    enough = weigh(kept, largest) >= wanted;
  }
  if (!enough) {
    keep_all(logits, vocabulary, kept);
    weigh(kept, largest);
  }
  total = keep_nucleus(kept, wanted);
  std::sort(kept.begin(), kept.end(), by_id);
  return total;
}

// The token of row `row`, or -1 when its logits are not usable.
int32_t draw(const SampleTokens& op, int64_t row, Workspace& work) {
  const int64_t vocabulary = op.logits.columns();
  float* logits = rows_of(op.logits)[row];
  const int32_t slot = op.slots.data<int32_t>()[row];
  const float penalty = op.penalty.data<float>()[row];
  if (slot >= 0 && penalty != 1.0F)
    penalize(logits, vocabulary, op.seen.data<uint32_t>() + slot * op.seen.row_stride(), penalty);
  if (op.ban.data<int32_t>()[row] != 0) {
    const int32_t* banned = op.banned.data<int32_t>();
    for (int64_t i = 0; i < op.banned.dim(0); ++i) logits[banned[i]] = -infinity;
  }

  const float temperature = op.temperature.data<float>()[row];
  const bool greedy = temperature == 0.0F;
  if (!scale_and_bound(logits, vocabulary, greedy ? 1.0F : temperature, work.block_maxima)) return -1;
  const auto top_block = std::max_element(work.block_maxima.begin(), work.block_maxima.end());
  const float largest = *top_block;
  if (greedy) {
    const float* const first = logits + (top_block - work.block_maxima.begin()) * block_tokens;
    return static_cast<int32_t>(std::find(first, first + block_tokens, largest) - logits);
  }

  const float uniform = uniform_at((static_cast<uint64_t>(op.stream_high.data<uint32_t>()[row]) << 32) |
                                       op.stream_low.data<uint32_t>()[row],
                                   op.position.data<uint32_t>()[row]);
  const double total = keep_filtered(logits, vocabulary, largest, op.top_k.data<int32_t>()[row],
                                     static_cast<double>(op.top_p.data<float>()[row]), work);
  const std::vector<Candidate>& kept = work.candidates;
  const double target = static_cast<double>(uniform) * total;
  double cumulated = 0.0;
  int32_t last_possible = kept.front().token;
  for (const Candidate& candidate : kept) {
    if (candidate.weight <= 0.0F) continue;
    cumulated += static_cast<double>(candidate.weight);
    last_possible = candidate.token;
    if (cumulated > target) break;
  }
  return last_possible;
}

void set_bit(const Tensor& seen, int64_t slot, int32_t token) {
  seen.data<uint32_t>()[slot * seen.row_stride() + token / 32] |= uint32_t{1} << (token % 32);
}

void check_values(const SampleTokens& op, int64_t rows, int64_t vocabulary) {
  const int32_t *banned = op.banned.data<int32_t>(), *slots = op.slots.data<int32_t>();
  for (int64_t i = 0; i < op.banned.dim(0); ++i)
    require(banned[i] >= 0 && banned[i] < vocabulary, "SampleTokens: a banned token outside the vocabulary");
  const float *temperature = op.temperature.data<float>(), *penalty = op.penalty.data<float>();
  for (int64_t row = 0; row < rows; ++row) {
    require(slots[row] < op.seen.rows(), "SampleTokens: a slot outside the bitmap");
    require(temperature[row] >= 0.0F && penalty[row] > 0.0F,
            "SampleTokens: a temperature or penalty out of range");
  }
}

}  // namespace

template <>
void launch<Device::cpu>(const Context& context, const MarkSeen& op) {
  const Dims dims = match_shapes("MarkSeen", context.device,
                                 {{"tokens", op.tokens, "T", DType::i32},
                                  {"slots", op.slots, "T", DType::i32},
                                  {"seen", op.seen, "SW", DType::u32}});
  const int32_t *tokens = op.tokens.data<int32_t>(), *slots = op.slots.data<int32_t>();
  for (int64_t t = 0; t < dims['T']; ++t) {
    if (slots[t] < 0) continue;
    require(slots[t] < dims['S'], "MarkSeen: a slot outside the bitmap");
    require(tokens[t] >= 0 && tokens[t] / 32 < dims['W'], "MarkSeen: a token outside the bitmap");
    set_bit(op.seen, slots[t], tokens[t]);
  }
}

template <>
void launch<Device::cpu>(const Context& context, const SampleTokens& op) {
  const Dims dims = match_shapes("SampleTokens", context.device,
                                 {{"logits", op.logits, "RV"},
                                  {"seen", op.seen, "SW", DType::u32},
                                  {"slots", op.slots, "R", DType::i32},
                                  {"temperature", op.temperature, "R"},
                                  {"top_p", op.top_p, "R"},
                                  {"penalty", op.penalty, "R"},
                                  {"top_k", op.top_k, "R", DType::i32},
                                  {"stream_low", op.stream_low, "R", DType::u32},
                                  {"stream_high", op.stream_high, "R", DType::u32},
                                  {"position", op.position, "R", DType::u32},
                                  {"banned", op.banned, "B", DType::i32},
                                  {"ban", op.ban, "R", DType::i32},
                                  {"out", op.out, "R", DType::i32}},
                                 {{'W', (op.logits.columns() + 31) / 32}});
  const int64_t rows = dims['R'];
  check_values(op, rows, dims['V']);
  int32_t* out = op.out.data<int32_t>();
  std::atomic<int64_t> unusable = -1;
#pragma omp parallel for schedule(dynamic) if (rows * dims['V'] > parallel_floats)
  for (int64_t row = 0; row < rows; ++row) {
    thread_local Workspace work;
    out[row] = draw(op, row, work);
    if (out[row] < 0) unusable = row;
  }
  // An exception may not leave a parallel loop.
  if (unusable >= 0) throw unusable_logits();
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t slot = op.slots.data<int32_t>()[row];
    if (slot >= 0) set_bit(op.seen, slot, out[row]);
  }
}

}  // namespace sl
