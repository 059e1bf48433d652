// Stage 1 of METHOD.md: the Generator answers an instruction.
#pragma once

#include <string>

#include "lengthen/sample.hpp"

namespace sl {

// Record of success: {"response"}. `instruction` outlives the flow.
Task<nlohmann::json> respond(Sample& sample, const std::string& instruction);

}  // namespace sl
