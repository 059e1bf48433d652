#include "lengthen/length_bias.hpp"

#include "text/rules.hpp"

namespace sl {

std::vector<bool> keep_by_length(const MethodOptions& method, int64_t iteration, StageId stage,
                                 std::span<const int64_t> samples, std::span<const std::string> responses) {
  std::vector<int64_t> characters;
  characters.reserve(responses.size());
  for (const std::string& response : responses) characters.push_back(count_code_points(response));
  const std::vector<double> probabilities = length_bias_keep_probabilities(characters);
  std::vector<bool> keep(responses.size());
  for (size_t i = 0; i < keep.size(); ++i) {
    Random random(draw_address(method, iteration, stage, samples[i]));
    keep[i] = random.uniform() < probabilities[i];
  }
  return keep;
}

}  // namespace sl
