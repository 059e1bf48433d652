// Log-probabilities of texts by a model, on all ranks: texts are packed into passes, which replicas share
// out.
#pragma once

#include <cstdint>
#include <vector>

#include "cli/command_line.hpp"
#include "cli/launch.hpp"
#include "train/packing.hpp"

namespace sl {

constexpr int64_t default_pass_tokens = 2048;
void add_pass_option(CommandLine& line, int64_t& pass_tokens);

// Natural logarithms of the probabilities of tokens 2 to n of each row, all of whose mask is 1, on rank 0;
// elsewhere nothing. Rows have a token at least. Collective over all ranks. InputError when one of them is
// not finite.
std::vector<std::vector<double>> log_probabilities(Ranks& ranks, const ModelChoice& choice,
                                                   ModelSource source, const std::vector<TrainingRow>& rows,
                                                   int64_t pass_tokens);

}  // namespace sl
