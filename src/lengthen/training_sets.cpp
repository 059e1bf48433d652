#include "lengthen/training_sets.hpp"

#include <utility>

#include "text/rules.hpp"

namespace sl {
namespace {

// Addresses of the draws: one shuffle a role, and one stream of kept lines a row.
constexpr int32_t generator_shuffle = 1, extender_shuffle = 2, line_removal = 3;

void shuffle(std::vector<TrainingPair>& rows, const RandomAddress& address) {
  Random random(address);
  for (size_t i = rows.size(); i > 1; --i) {
    std::swap(rows[i - 1], rows[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
  }
}

}  // namespace

std::vector<TrainingPair> generator_set(const MethodOptions& method, int64_t iteration,
                                        const std::vector<Extension>& extensions) {
  std::vector<TrainingPair> rows;
  rows.reserve(extensions.size());
  for (const Extension& extension : extensions) rows.push_back({extension.instruction, extension.extended});
  shuffle(rows, draw_address(method, iteration, StageId::training_sets, 0, generator_shuffle));
  return rows;
}

std::vector<TrainingPair> extender_set(const MethodOptions& method, int64_t iteration, const Prompts& prompts,
                                       const std::vector<Extension>& extensions) {
  std::vector<TrainingPair> rows;
  rows.reserve(extensions.size());
  for (size_t i = 0; i < extensions.size(); ++i) {
    const Extension& extension = extensions[i];
    Random random(
        draw_address(method, iteration, StageId::training_sets, static_cast<int64_t>(i), line_removal));
    std::string thinned = random_line_removal(extension.initial, method.language,
                                              [&](int64_t) { return random.uniform() < method.line_keep; });
    rows.push_back(
        {prompts.render("extend", {{"instruction", extension.instruction}, {"text", std::move(thinned)}}),
         extension.extended});
  }
  shuffle(rows, draw_address(method, iteration, StageId::training_sets, 0, extender_shuffle));
  return rows;
}

}  // namespace sl
