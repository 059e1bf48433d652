// Causal attention over one sequence by its definition, in double: what the operations are compared with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace sl::test {

struct Heads {
  int64_t queries, keys, dim;
  int64_t width() const { return (queries + 2 * keys) * dim; }
};

struct Attended {
  std::vector<double> out, log_sum_exp;
};

// Causal attention over one sequence of packed qkv rows.
inline Attended attend(const std::vector<double>& qkv, int64_t rows, const Heads& heads, double scale) {
  Attended result{std::vector<double>(static_cast<size_t>(rows * heads.queries * heads.dim), 0.0), {}};
  const auto at = [&](int64_t row, int64_t head, int64_t d) {
    return qkv[static_cast<size_t>(row * heads.width() + head * heads.dim + d)];
  };
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t h = 0; h < heads.queries; ++h) {
      const int64_t key_head = heads.queries + h / (heads.queries / heads.keys);
      std::vector<double> scores;
      for (int64_t j = 0; j <= t; ++j) {
        double score = 0.0;
        for (int64_t d = 0; d < heads.dim; ++d) score += at(t, h, d) * at(j, key_head, d);
        scores.push_back(scale * score);
      }
      const double largest = *std::max_element(scores.begin(), scores.end());
      double total = 0.0;
      for (double score : scores) total += std::exp(score - largest);
      result.log_sum_exp.push_back(largest + std::log(total));
      for (int64_t j = 0; j <= t; ++j) {
        const double p = std::exp(scores[static_cast<size_t>(j)] - result.log_sum_exp.back());
        for (int64_t d = 0; d < heads.dim; ++d)
          result.out[static_cast<size_t>((t * heads.queries + h) * heads.dim + d)] +=
              p * at(j, key_head + heads.keys, d);
      }
    }
  }
  return result;
}

// The gradient of sum(out * grad_out) for one sequence, from the definition of softmax.
inline std::vector<double> attention_gradient(const std::vector<double>& qkv,
                                              const std::vector<double>& grad_out, int64_t rows,
                                              const Heads& heads, double scale) {
  std::vector<double> grad(qkv.size(), 0.0);
  const Attended forward = attend(qkv, rows, heads, scale);
  const auto in_qkv = [&](int64_t row, int64_t head) {
    return static_cast<size_t>(row * heads.width() + head * heads.dim);
  };
  const size_t dim = static_cast<size_t>(heads.dim);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t h = 0; h < heads.queries; ++h) {
      const int64_t key_head = heads.queries + h / (heads.queries / heads.keys);
      const size_t row_out = static_cast<size_t>((t * heads.queries + h) * heads.dim);
      double along = 0.0;
      for (size_t d = 0; d < dim; ++d) along += grad_out[row_out + d] * forward.out[row_out + d];
      for (int64_t j = 0; j <= t; ++j) {
        const size_t q = in_qkv(t, h), k = in_qkv(j, key_head), v = in_qkv(j, key_head + heads.keys);
        double score = 0.0, reached = 0.0;
        for (size_t d = 0; d < dim; ++d) {
          score += qkv[q + d] * qkv[k + d];
          reached += grad_out[row_out + d] * qkv[v + d];
        }
        const double p =
            std::exp(scale * score - forward.log_sum_exp[static_cast<size_t>(t * heads.queries + h)]);
        const double grad_score = scale * p * (reached - along);
        for (size_t d = 0; d < dim; ++d) {
          grad[v + d] += p * grad_out[row_out + d];
          grad[q + d] += grad_score * qkv[k + d];
          grad[k + d] += grad_score * qkv[q + d];
        }
      }
    }
  }
  return grad;
}

}  // namespace sl::test
