// Stage 0 of METHOD.md: new instructions from a pool of old ones, invented and judged by the base model.
#pragma once

#include <string>
#include <vector>

#include "lengthen/sample.hpp"

namespace sl {

// Record of success: {"instruction"}. `pool` outlives the flow and holds at least two.
Task<nlohmann::json> invent_instruction(Sample& sample, const std::vector<std::string>& pool);

}  // namespace sl
