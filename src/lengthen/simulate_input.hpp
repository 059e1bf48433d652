// Where the lengths of a simulated stage come from: a distribution, or a stage of a run that is finished.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/dataset.hpp"
#include "lengthen/simulate.hpp"

namespace sl {

// New tokens of an attempt: log-normal, its mean and the standard deviation of its logarithm, cut at
// `longest`. Each attempt is accepted with a probability, up to so many.
struct LengthDistribution {
  double mean = 1000.0, sigma = 0.0;
  int64_t longest = 16384;
  double acceptance = 1.0;
  int64_t attempts = 20;
  int64_t prompt = 200;  // tokens
};
// "lognormal:1000,0.5"; InputError names `where`.
LengthDistribution parse_lengths(const std::string& text, const std::string& where);
// A sample's numbers depend on the seed and its place alone.
std::vector<SimulatedSample> draw_samples(const LengthDistribution& lengths, int64_t count, uint64_t seed);

// The samples of a finished stage, in the order in which they were handed out, with the tokens of each spread
// evenly over its attempts: that is all the dataset knows. Samples that were given up are not in it: each
// gets the mean of what the report's totals leave for them. Those that were abandoned, the last of what is
// missing, get as many tokens as the costliest. `prompt`: tokens read for each sample. InputError with
// `where` when the table is none of a stage.
std::vector<SimulatedSample> samples_of_stage(const Table& stage, int64_t prompt, const std::string& where);

}  // namespace sl
