// Length-bias sampling (METHOD.md): the longer of a stage's responses are kept more often.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lengthen/sample.hpp"

namespace sl {

// Which of the responses stay, by one addressed draw each: response i is sample samples[i] of the stage.
std::vector<bool> keep_by_length(const MethodOptions& method, int64_t iteration, StageId stage,
                                 std::span<const int64_t> samples, std::span<const std::string> responses);

}  // namespace sl
