// Stage 2 of METHOD.md: the Extender lengthens a response, in two stages, up to micro_iterations times.
#pragma once

#include <string>

#include "lengthen/sample.hpp"

namespace sl {

// Record of success: {"response"}: the extended one. The strings outlive the flow.
Task<nlohmann::json> extend(Sample& sample, const std::string& instruction, const std::string& initial);

}  // namespace sl
