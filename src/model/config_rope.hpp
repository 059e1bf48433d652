// The llama3 rule back from a GGUF file's frequency divisors.
#pragma once

#include <nlohmann/json.hpp>

#include "model/config.hpp"

namespace sl {

// rope_scaling of a config.json that gives the frequencies of config.rope_scaling.divisors, with Llama 3's
// constants 1 and 4. InputError when no such rule does.
nlohmann::json scaling_as_llama3(const ModelConfig& config);

}  // namespace sl
