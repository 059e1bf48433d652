// Stage 3 of METHOD.md: what the two roles learn from an iteration's extended responses.
#pragma once

#include <string>
#include <vector>

#include "lengthen/sample.hpp"

namespace sl {

// A kept extended response with what it came from.
struct Extension {
  std::string instruction, initial, extended;
};

struct TrainingPair {
  std::string user, assistant;
};

// The Generator learns to answer the instruction with the extended response. Shuffled.
std::vector<TrainingPair> generator_set(const MethodOptions& method, int64_t iteration,
                                        const std::vector<Extension>& extensions);
// The Extender learns to make the extended response of the initial one with random lines removed. Shuffled.
std::vector<TrainingPair> extender_set(const MethodOptions& method, int64_t iteration, const Prompts& prompts,
                                       const std::vector<Extension>& extensions);

}  // namespace sl
