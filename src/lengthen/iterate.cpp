#include "lengthen/iterate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <optional>

#include "core/activity.hpp"
#include "io/dataset.hpp"
#include "lengthen/rollout_stages.hpp"
#include "lengthen/rollouts.hpp"
#include "lengthen/train_roles.hpp"
#include "lengthen/training_sets.hpp"

namespace sl {
namespace {

class Iteration {
 public:
  Iteration(Session& session, int64_t number, const std::vector<std::string>& seeds)
      : session_(session), number_(number), stages_(session, number, seeds) {}

  void run() {
    activity().stage("begin", number_);
    if (session_.first()) session_.folder.create_iteration(number_);
    session_.groups.world->barrier();
    {
      std::optional<Rollouts> rollouts;
      const auto engine = [&]() -> Engine& {  // made by the first stage that has work left
        if (!rollouts) rollouts.emplace(session_, number_, adapters_before());
        return rollouts->engine();
      };
      const Table instructions = stages_.table_of("instructions", [&] { return stages_.instruct(engine()); });
      const Table initial =
          stages_.table_of("initial", [&] { return stages_.respond_to(instructions, engine()); });
      const Table extended =
          stages_.table_of("extended", [&] { return stages_.extend_all(initial, engine()); });
      stages_.table_of("sft_generator", [&] {
        return pairs_table(generator_set(method(), number_, kept_extensions(extended)));
      });
      stages_.table_of("sft_extender", [&] {
        return pairs_table(extender_set(method(), number_, session_.prompts, kept_extensions(extended)));
      });
    }
    for (Role role : {Role::generator, Role::extender}) {
      const std::string name(role_name(role));
      train_role(session_, number_, role, read_table(session_.folder.stage_file(number_, "sft_" + name)));
    }
  }

 private:
  const MethodOptions& method() const { return session_.method; }

  // Both roles' of the iteration before.
  std::vector<std::string> adapters_before() const {
    std::vector<std::string> folders;
    if (number_ == 1) return folders;
    for (Role role : {Role::generator, Role::extender})
      folders.push_back(session_.folder.adapter(number_ - 1, std::string(role_name(role))));
    return folders;
  }

  std::vector<Extension> kept_extensions(const Table& extended) const {
    std::vector<Extension> kept;
    for (size_t row = 0; row < static_cast<size_t>(extended.rows()); ++row) {
      if (extended.integers("kept")[row] == 0) continue;
      kept.push_back({extended.texts("instruction")[row], extended.texts("initial")[row],
                      extended.texts("response")[row]});
    }
    if (kept.empty()) stages_.refuse("length-bias sampling kept none of the extended responses");
    return kept;
  }

  static Table pairs_table(const std::vector<TrainingPair>& pairs) {
    std::vector<std::string> users, assistants;
    for (const TrainingPair& pair : pairs) {
      users.push_back(pair.user);
      assistants.push_back(pair.assistant);
    }
    Table table;
    table.add("user", std::move(users));
    table.add("assistant", std::move(assistants));
    return table;
  }

  Session& session_;
  int64_t number_;
  RolloutStages stages_;
};

}  // namespace

void run_iterations(Session& session, const std::vector<std::string>& seeds) {
  for (int64_t number = 1; number <= session.method.iterations; ++number)
    Iteration(session, number, seeds).run();
}

std::vector<LengthRow> length_table(const RunFolder& folder, int64_t iterations) {
  std::vector<LengthRow> rows;
  for (int64_t iteration = 1; iteration <= iterations; ++iteration) {
    for (const char* stage : {"initial", "extended"}) {
      const std::string path = folder.stage_file(iteration, stage);
      if (!std::filesystem::exists(path)) continue;
      const Table table = read_table(path);
      std::vector<int64_t> words = table.integers("words");
      std::sort(words.begin(), words.end());
      const std::vector<int64_t>& kept = table.integers("kept");
      LengthRow row{.iteration = iteration, .stage = stage, .responses = table.rows()};
      if (!words.empty()) {
        row.mean_words = static_cast<double>(std::accumulate(words.begin(), words.end(), int64_t{0})) /
                         static_cast<double>(words.size());
        row.median_words = words[words.size() / 2];
        row.longest_words = words.back();
      }
      row.kept = std::accumulate(kept.begin(), kept.end(), int64_t{0});
      rows.push_back(row);
    }
  }
  return rows;
}

std::string to_text(const std::vector<LengthRow>& table) {
  std::string text = "iteration  stage      responses  mean words  median  longest  kept\n";
  for (const LengthRow& row : table) {
    text += fmt::format("{:>9}  {:<9}  {:>9}  {:>10.1f}  {:>6}  {:>7}  {:>4}\n", row.iteration, row.stage,
                        row.responses, row.mean_words, row.median_words, row.longest_words, row.kept);
  }
  return text;
}

}  // namespace sl
