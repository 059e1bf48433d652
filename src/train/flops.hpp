// Arithmetic of training, for rates beside a machine's peak.
#pragma once

#include <cstdint>

#include "model/config.hpp"

namespace sl {

// Operations of forward and backward over one packed sequence of `rows` rows, whatever is computed twice.
// Products of the blocks and the head: 2 a weight and row forward, 2 for the gradient of the input, 2 more
// where the weight itself is learnt (`full`). Causal attention: 2 products forward and 5 backward, of each
// the half below the diagonal.
inline double training_flops(const ModelConfig& config, int64_t rows, bool full) {
  const int64_t tables = (config.tied ? 1 : 2) * config.vocabulary * config.hidden;
  const int64_t weights = config.parameters() - tables + config.vocabulary * config.hidden;
  const double products = (full ? 6.0 : 4.0) * static_cast<double>(weights) * static_cast<double>(rows);
  const double attention = 7.0 * static_cast<double>(rows) * static_cast<double>(rows) *
                           static_cast<double>(config.heads * config.head_dim * config.layers);
  return products + attention;
}

}  // namespace sl
