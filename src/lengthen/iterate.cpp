#include "lengthen/iterate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <optional>

#include "core/activity.hpp"
#include "core/log.hpp"
#include "io/dataset.hpp"
#include "lengthen/extend.hpp"
#include "lengthen/instruct.hpp"
#include "lengthen/length_bias.hpp"
#include "lengthen/respond.hpp"
#include "lengthen/stage.hpp"
#include "lengthen/train_roles.hpp"
#include "lengthen/training_sets.hpp"
#include "rollout/model_step.hpp"
#include "text/rules.hpp"

namespace sl {
namespace {

// The engine of an iteration's rollouts with the adapters of the iteration before. It goes, with its pages,
// when training needs the memory.
class Rollouts {
 public:
  Rollouts(Session& session, int64_t iteration)
      : options_{session.limits.max_batch_rows, session.limits.max_sequences, session.limits.max_positions},
        model_(session.model.transformer(), options_, session.limits.pages, session.limits.tokens_per_page),
        engine_(model_, session.model.tokenizer(), options_) {
    if (iteration > 1) serve_adapters(session, iteration - 1);
    if (!session.first()) return;
    session.folder.append_metrics({{"iteration", iteration},
                                   {"stage", "rollouts begin"},
                                   {"seconds", whole_.seconds()},
                                   {"adapter_seconds", adapter_seconds_}});
  }
  Engine& engine() { return engine_; }

 private:
  void serve_adapters(Session& session, int64_t iteration) {
    const auto adapter_of = [&](Role role) {
      const std::string folder = session.folder.adapter(iteration, std::string(role_name(role)));
      check_saved_adapter(folder);
      return session.model.adapter_from(folder);
    };
    const Adapter generator = adapter_of(Role::generator), extender = adapter_of(Role::extender);
    const Stopwatch watch;
    model_.set_adapters(std::vector{&generator, &extender});
    adapter_seconds_ = watch.seconds();
  }

  const Stopwatch whole_;       // before all that takes time
  double adapter_seconds_ = 0;  // from device memory to where the engine has them
  EngineOptions options_;
  ModelStep model_;
  Engine engine_;
};

class Iteration {
 public:
  Iteration(Session& session, int64_t number, const std::vector<std::string>& seeds)
      : session_(session), number_(number), seeds_(seeds) {}

  void run() {
    activity().stage("begin", number_);
    if (session_.first()) session_.folder.create_iteration(number_);
    session_.groups.world->barrier();
    {
      std::optional<Rollouts> rollouts;
      const auto engine = [&]() -> Engine& {  // made by the first stage that has work left
        if (!rollouts) rollouts.emplace(session_, number_);
        return rollouts->engine();
      };
      const Table instructions = table_of("instructions", [&] { return instruct(engine()); });
      const Table initial = table_of("initial", [&] { return respond_to(instructions, engine()); });
      const Table extended = table_of("extended", [&] { return extend_all(initial, engine()); });
      table_of("sft_generator",
               [&] { return pairs_table(generator_set(method(), number_, kept_extensions(extended))); });
      table_of("sft_extender", [&] {
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

  // The stage's file when it is finished; else what `make` makes, which every rank has whole, written
  // together.
  Table table_of(const std::string& stage, const std::function<Table()>& make) {
    const std::string path = session_.folder.stage_file(number_, stage);
    // Rank 0 looks, for all: a shared file system may show a new file later to others.
    int64_t there = session_.first() && std::filesystem::exists(path) ? 1 : 0;
    session_.groups.world->broadcast(std::as_writable_bytes(std::span(&there, 1)), 0);
    if (there != 0) {
      // A run killed between the file and the removal of its journals has left them.
      if (session_.first()) session_.folder.remove_journals(number_, stage);
      return read_table(path);
    }
    const Table table = make();
    const Range slice = share_of(table.rows(), session_.groups.world->size(), session_.groups.world->rank());
    write_table(path, table.slice(slice.begin, slice.end), session_.groups.raw_world);
    if (session_.first()) session_.folder.remove_journals(number_, stage);
    session_.progress.finish();
    if (session_.first()) spdlog::info("iteration {}: {} written with {} rows", number_, path, table.rows());
    return table;
  }

  // The times go to the metrics alone: equal content is equal bytes in the dataset.
  void note(StageId stage, const StageResult& result, const Stopwatch& watch) {
    if (!session_.first()) return;
    const StageReport& report = result.report;
    nlohmann::json row = report.to_json();
    row["seconds"] = watch.seconds();
    row["tokens_before"] = result.tokens_before;
    row["iteration"] = number_;
    row["stage"] = stage_name(stage);
    session_.folder.append_metrics(row);
    session_.progress.finish();
    spdlog::info("iteration {}: {}: {}", number_, stage_name(stage), report.to_json().dump());
  }

  // Stage 0. A growing pool grows between waves, so that its order of draws does not depend on who is faster.
  Table instruct(Engine& engine) {
    const Stopwatch watch;
    StageResult all;
    const bool growing = method().instruction_pool == InstructionPool::growing;
    const int64_t wave = growing ? method().instruction_wave : method().instructions;
    std::vector<std::string> pool = seeds_;
    for (int64_t begin = 0; begin < method().instructions;) {
      const int64_t round_end = growing
                                    ? (begin / method().instruction_round + 1) * method().instruction_round
                                    : method().instructions;
      if (growing && begin % method().instruction_round == 0) pool = seeds_;
      const int64_t end = std::min({begin + wave, round_end, method().instructions});
      StageResult part =
          run_stage(session_, engine,
                    {.iteration = number_,
                     .id = StageId::instructions,
                     .first_sample = begin,
                     .last_sample = end,
                     .flow = [&](Sample& sample) { return invent_instruction(sample, pool); }});
      for (const nlohmann::json& record : part.accepted) pool.push_back(record.at("instruction"));
      all.add(std::move(part));
      begin = end;
    }
    note(StageId::instructions, all, watch);
    if (all.accepted.empty()) {
      throw InputError("no instruction was accepted", session_.folder.path(),
                       "use --judge choice for a small model, more --instruction-attempts, or other seeds");
    }
    Table table;
    table.attributes = attributes_of(all.report);
    table.add("sample", integers(all.accepted, "sample"));
    table.add("instruction", texts(all.accepted, "instruction"));
    table.add("attempts", integers(all.accepted, "attempts"));
    table.add("tokens", integers(all.accepted, "tokens"));
    return table;
  }

  // Stage 1: `responses` samples of every instruction.
  Table respond_to(const Table& instructions, Engine& engine) {
    const std::vector<std::string>& questions = instructions.texts("instruction");
    const auto question_of = [&](int64_t sample) -> const std::string& {
      return questions[static_cast<size_t>(sample / method().responses)];
    };
    const Stopwatch watch;
    const StageResult result =
        run_stage(session_, engine,
                  {.iteration = number_,
                   .id = StageId::initial,
                   .first_sample = 0,
                   .last_sample = instructions.rows() * method().responses,
                   .flow = [&](Sample& sample) { return respond(sample, question_of(sample.index())); }});
    note(StageId::initial, result, watch);
    std::vector<std::string> asked;
    for (int64_t sample : integers(result.accepted, "sample")) asked.push_back(question_of(sample));
    Table table = response_table(StageId::initial, result);
    table.add("instruction", std::move(asked));
    return table;
  }

  // Stage 2: `extensions` samples of every kept initial response, in shuffled order.
  Table extend_all(const Table& initial, Engine& engine) {
    std::vector<int64_t> order;
    for (int64_t row = 0; row < initial.rows(); ++row) {
      if (initial.integers("kept")[static_cast<size_t>(row)] != 0) order.push_back(row);
    }
    if (order.empty()) refuse("length-bias sampling kept none of the initial responses");
    Random random(draw_address(method(), number_, StageId::extended, 0, /*turn=*/1));
    for (size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
    }
    const auto row_of = [&](int64_t sample) {
      return static_cast<size_t>(order[static_cast<size_t>(sample / method().extensions)]);
    };
    const Stopwatch watch;
    const StageResult result =
        run_stage(session_, engine,
                  {.iteration = number_,
                   .id = StageId::extended,
                   .first_sample = 0,
                   .last_sample = static_cast<int64_t>(order.size()) * method().extensions,
                   .flow = [&](Sample& sample) {
                     const size_t row = row_of(sample.index());
                     return extend(sample, initial.texts("instruction")[row], initial.texts("response")[row]);
                   }});
    note(StageId::extended, result, watch);
    std::vector<std::string> instructions, starts;
    std::vector<int64_t> rows;
    for (int64_t sample : integers(result.accepted, "sample")) {
      rows.push_back(static_cast<int64_t>(row_of(sample)));
      instructions.push_back(initial.texts("instruction")[row_of(sample)]);
      starts.push_back(initial.texts("response")[row_of(sample)]);
    }
    Table table = response_table(StageId::extended, result);
    table.add("instruction", std::move(instructions));
    table.add("initial", std::move(starts));
    table.add("initial_row", std::move(rows));
    return table;
  }

  // The columns of stages 1 and 2, length-bias sampling included.
  Table response_table(StageId stage, const StageResult& result) const {
    if (result.accepted.empty()) {
      throw InputError(fmt::format("no response of stage '{}' was accepted", stage_name(stage)),
                       session_.folder.path(),
                       "allow more attempts or longer texts (--max-tokens), or use a stronger model");
    }
    const std::vector<int64_t> samples = integers(result.accepted, "sample");
    std::vector<std::string> responses = texts(result.accepted, "response");
    const std::vector<bool> keep = keep_by_length(method(), number_, stage, samples, responses);
    std::vector<int64_t> words, characters;
    for (const std::string& response : responses) {
      words.push_back(count_words(response));
      characters.push_back(count_code_points(response));
    }
    Table table;
    table.attributes = attributes_of(result.report);
    table.add("sample", samples);
    table.add("response", std::move(responses));
    table.add("words", std::move(words));
    table.add("characters", std::move(characters));
    table.add("kept", std::vector<int64_t>(keep.begin(), keep.end()));
    table.add("attempts", integers(result.accepted, "attempts"));
    table.add("tokens", integers(result.accepted, "tokens"));
    return table;
  }

  std::vector<Extension> kept_extensions(const Table& extended) const {
    std::vector<Extension> kept;
    for (size_t row = 0; row < static_cast<size_t>(extended.rows()); ++row) {
      if (extended.integers("kept")[row] == 0) continue;
      kept.push_back({extended.texts("instruction")[row], extended.texts("initial")[row],
                      extended.texts("response")[row]});
    }
    if (kept.empty()) refuse("length-bias sampling kept none of the extended responses");
    return kept;
  }

  [[noreturn]] void refuse(const std::string& what) const {
    throw InputError(what, session_.folder.iteration(number_),
                     "use more --instructions, --responses or --extensions");
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

  static std::map<std::string, std::string> attributes_of(const StageReport& report) {
    return {{"report", report.to_json().dump()}};
  }
  static std::vector<int64_t> integers(const std::vector<nlohmann::json>& records, const char* key) {
    std::vector<int64_t> values;
    for (const nlohmann::json& record : records) values.push_back(record.at(key).get<int64_t>());
    return values;
  }
  static std::vector<std::string> texts(const std::vector<nlohmann::json>& records, const char* key) {
    std::vector<std::string> values;
    for (const nlohmann::json& record : records) values.push_back(record.at(key).get<std::string>());
    return values;
  }

  Session& session_;
  int64_t number_;
  const std::vector<std::string>& seeds_;
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
