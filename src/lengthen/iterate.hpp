// The macro-iterations of METHOD.md: rollouts, training sets, training of both roles, again and again, in one
// process. Everything that is finished is in the run folder; calling this again continues there.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lengthen/session.hpp"

namespace sl {

// Collective over the world. Throws Stopped on every rank when a signal asked for it.
void run_iterations(Session& session, const std::vector<std::string>& seeds);

// How lengths moved: one row an iteration and stage, read from the run folder's datasets.
struct LengthRow {
  int64_t iteration = 0;
  std::string stage;
  int64_t responses = 0;
  double mean_words = 0.0;
  int64_t median_words = 0, longest_words = 0;
  int64_t kept = 0;
};
std::vector<LengthRow> length_table(const RunFolder& folder, int64_t iterations);
std::string to_text(const std::vector<LengthRow>& table);

}  // namespace sl
