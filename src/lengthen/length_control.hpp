// Length control of METHOD.md: the base model weaves a demand on the length of a finished response into its
// instruction.
#pragma once

#include <cstdint>
#include <string>

#include "lengthen/sample.hpp"
#include "text/length_demand.hpp"

namespace sl {

struct WeaveOptions {
  int64_t attempts = 10;
  int64_t tokens = 1024;  // of a rewritten instruction
  double kept = 0.8;      // share of the instruction's words that it has at the least
};

// A part of a sentence: "about 3,000 words".
std::string demand_text(const Prompts& prompts, Language language, const LengthDemand& demand);
// The instruction with the demand as a plain sentence behind it.
std::string with_demand_appended(const Prompts& prompts, Language language, const std::string& instruction,
                                 const LengthDemand& demand);

// What is asked of one response's instruction.
struct Weaving {
  std::string instruction;
  LengthDemand demand;
  Language language = Language::en;
};

// Record of success: {"instruction"}: the rewritten one. `prompts` are those of the weaving's language; all
// that is passed outlives the flow.
Task<nlohmann::json> weave(Sample& sample, const Weaving& weaving, const Prompts& prompts,
                           const WeaveOptions& options);

}  // namespace sl
