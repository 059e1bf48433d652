#include "lengthen/collect.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "core/log.hpp"
#include "io/dataset.hpp"
#include "lengthen/rollout_stages.hpp"
#include "lengthen/rollouts.hpp"
#include "text/rules.hpp"

namespace sl {
namespace {

namespace fs = std::filesystem;

constexpr const char* final_set = "final";

// One row of the final set, without its response: of those a rank reads only what it writes.
struct FinalRow {
  size_t source = 0;  // index of the table it comes from
  int64_t row = 0;    // in it
  int64_t words = 0;
  Weaving weaving;  // the instruction that was answered; no demand: none is stated
  std::string instruction;
  bool woven = false;
};

class Collection {
 public:
  Collection(Session& session, const FinishedRun& run, const CollectOptions& options,
             const PromptsByLanguage& prompts, const std::vector<std::string>& seeds)
      : session_(session), run_(run), options_(options), prompts_(prompts), seeds_(seeds) {}

  void run() {
    const std::string path = session_.folder.stage_file(0, final_set);
    if (!session_.finished(path)) {
      for (int64_t batch = 1; batch <= batches(); ++batch) collect_batch(batch);
      find_sources();
      const StageReport report = control_lengths();
      write(path, report);
      if (session_.first()) spdlog::info("{} written with {} rows", path, static_cast<int64_t>(rows_.size()));
    }
    // Also those that a collection has left which was killed between the file and their removal.
    if (session_.first()) session_.folder.remove_journals(0, length_control_name());
  }

 private:
  static std::string length_control_name() { return std::string(stage_name(StageId::length_control)); }
  int64_t batches() const { return (options_.instructions + options_.batch - 1) / options_.batch; }

  // Made by the first stage that has work left.
  Engine& engine(int64_t number) {
    if (!rollouts_) rollouts_.emplace(session_, number, std::vector<std::string>{run_.generator()});
    return rollouts_->engine();
  }

  void collect_batch(int64_t batch) {
    MethodOptions method = session_.method;
    method.instructions = std::min(options_.batch, options_.instructions - (batch - 1) * options_.batch);
    Session session = session_.with(method);
    if (session.first()) session.folder.create_iteration(batch);
    session.groups.world->barrier();
    RolloutStages stages(session, batch, seeds_, /*may_be_empty=*/true);
    const Table instructions =
        stages.table_of("instructions", [&] { return stages.instruct(engine(batch)); });
    stages.table_of("initial", [&] { return stages.respond_to(instructions, engine(batch)); });
  }

  // All rows of the final set, in the order of the run. One table is in memory at a time.
  void find_sources() {
    for (int64_t k = 1; k <= run_.iterations; ++k) {
      for (const char* stage : {"initial", "extended"}) add_source(run_.folder, k, stage);
    }
    for (int64_t batch = 1; batch <= batches(); ++batch) add_source(session_.folder, batch, "initial");
    if (rows_.empty()) {
      throw InputError("the final set would be empty", session_.folder.path(),
                       "use --final all, or more --instructions");
    }
  }

  void add_source(const RunFolder& folder, int64_t number, const std::string& stage) {
    sources_.push_back(folder.stage_file(number, stage));
    const Table table = read_table(sources_.back());
    for (int64_t i = 0; i < table.rows(); ++i) {
      const auto row = static_cast<size_t>(i);
      if (options_.responses == FinalResponses::kept && table.integers("kept")[row] == 0) continue;
      FinalRow& added = rows_.emplace_back();
      added.source = sources_.size() - 1;
      added.row = i;
      added.words = table.integers("words")[row];
      added.instruction = added.weaving.instruction = table.texts("instruction")[row];
      added.weaving.language = detect_language(table.texts("response")[row]);
    }
  }

  // States the demands in the instructions. All samples count here: a straggler's demand would be lost.
  StageReport control_lengths() {
    std::vector<FinalRow*> demanding;
    for (FinalRow& row : rows_) {
      if (!options_.control.covers(row.words)) continue;
      Random random(
          draw_address(session_.method, 0, StageId::length_control, static_cast<int64_t>(demanding.size())));
      row.weaving.demand = draw_demand(random, options_.control, row.words, row.weaving.language);
      demanding.push_back(&row);
    }
    if (demanding.empty()) return {};
    if (session_.first()) session_.folder.create_iteration(0);
    session_.groups.world->barrier();
    MethodOptions method = session_.method;
    method.straggler_cut = 1.0;
    Session session = session_.with(method);
    const Stopwatch watch;
    const StageResult result =
        run_stage(session, engine(0),
                  {.iteration = 0,
                   .id = StageId::length_control,
                   .first_sample = 0,
                   .last_sample = static_cast<int64_t>(demanding.size()),
                   .flow = [&](Sample& sample) {
                     const Weaving& weaving = demanding[static_cast<size_t>(sample.index())]->weaving;
                     return weave(sample, weaving, prompts_.at(weaving.language), options_.weave);
                   }});
    RolloutStages(session, 0, seeds_).note(StageId::length_control, result, watch);
    for (const nlohmann::json& record : result.accepted) {
      FinalRow& row = *demanding[record.at("sample").get<size_t>()];
      row.instruction = record.at("instruction").get<std::string>();
      row.woven = true;
    }
    for (FinalRow* row : demanding) {
      const Weaving& weaving = row->weaving;
      if (!row->woven) {
        row->instruction = with_demand_appended(prompts_.at(weaving.language), weaving.language,
                                                weaving.instruction, weaving.demand);
      }
    }
    return result.report;
  }

  void write(const std::string& path, const StageReport& report) {
    const Range slice = share_of(static_cast<int64_t>(rows_.size()), session_.groups.world->size(),
                                 session_.groups.world->rank());
    std::vector<std::string> instructions, responses, languages, sources, demands, originals;
    std::vector<int64_t> words, source_rows, low, high, woven;
    std::optional<Table> table;
    for (int64_t i = slice.begin; i < slice.end; ++i) {
      FinalRow& row = rows_[static_cast<size_t>(i)];
      if (!table || row.source != rows_[static_cast<size_t>(i - 1)].source)
        table = read_table(sources_[row.source]);
      const LengthDemand& demand = row.weaving.demand;
      instructions.push_back(std::move(row.instruction));
      responses.push_back(table->texts("response")[static_cast<size_t>(row.row)]);
      words.push_back(row.words);
      languages.emplace_back(language_name(row.weaving.language));
      sources.push_back(source_name(row.source));
      source_rows.push_back(row.row);
      demands.emplace_back(demand_name(demand.type));
      low.push_back(demand.low);
      high.push_back(demand.high);
      woven.push_back(row.woven ? 1 : 0);
      originals.push_back(std::move(row.weaving.instruction));
    }
    Table final;
    final.attributes = {{"report", report.to_json().dump()}};
    final.add("instruction", std::move(instructions));
    final.add("response", std::move(responses));
    final.add("words", std::move(words));
    final.add("language", std::move(languages));
    final.add("source", std::move(sources));
    final.add("source_row", std::move(source_rows));
    final.add("demand", std::move(demands));
    final.add("low", std::move(low));
    final.add("high", std::move(high));
    final.add("woven", std::move(woven));
    final.add("original_instruction", std::move(originals));
    write_table(path, final, session_.groups.raw_world, session_.tables);
  }

  // Its path in the run folder, without the ending: "iter_01/initial".
  std::string source_name(size_t source) const {
    const fs::path path = fs::path(sources_[source]).lexically_relative(run_.folder.path());
    return (path.parent_path() / path.stem()).string();
  }

  Session& session_;
  const FinishedRun& run_;
  const CollectOptions& options_;
  const PromptsByLanguage& prompts_;
  const std::vector<std::string>& seeds_;
  std::optional<Rollouts> rollouts_;
  std::vector<std::string> sources_;
  std::vector<FinalRow> rows_;
};

}  // namespace

FinishedRun finished_run(const RunFolder& folder, const nlohmann::json& run) {
  const auto trained = [&](int64_t k, const char* role) {
    return fs::exists(folder.adapter(k, role) + "/adapter_config.json");
  };
  FinishedRun found{folder};
  while (trained(found.iterations + 1, "extender")) ++found.iterations;  // the Extender is trained last
  const int64_t last = found.iterations;
  if (run.value("state", "") == state_name(RunState::done)) {
    const auto wanted = run["options"].value("iterations", last);
    if (last < wanted) {
      throw InputError("its adapters are missing, though the run is done", folder.iteration(last + 1),
                       "put them back, or let the run make them again");
    }
  }
  if (last == 0) {
    throw InputError("no iteration of this run is finished", folder.path(),
                     "let the run go on first: the collection needs its trained Generator");
  }
  check_saved_adapter(found.generator());
  for (int64_t k = 1; k <= last; ++k) {
    for (const char* stage : {"initial", "extended"}) {
      const std::string path = folder.stage_file(k, stage);
      if (!fs::exists(path)) throw InputError("is missing", path, "put it back: the final set needs it");
    }
  }
  return found;
}

uint64_t collection_seed(uint64_t seed, int64_t iterations) {
  return stream_of({.seed = seed,
                    .iteration = 0,
                    .stage = static_cast<int32_t>(StageId::collection),
                    .sample = iterations});
}

void collect(Session& session, const FinishedRun& run, const CollectOptions& options,
             const PromptsByLanguage& prompts, const std::vector<std::string>& seeds) {
  Collection(session, run, options, prompts, seeds).run();
}

std::string final_table(const RunFolder& collected) {
  const Table table = read_table(collected.stage_file(0, final_set));
  struct Sums {
    int64_t rows = 0, words = 0, demands = 0, woven = 0;
  };
  std::vector<std::pair<std::string, Sums>> by_source;  // in their order
  std::map<std::string, int64_t> by_demand;
  Sums all;
  for (size_t i = 0; i < static_cast<size_t>(table.rows()); ++i) {
    const std::string& source = table.texts("source")[i];
    if (by_source.empty() || by_source.back().first != source) by_source.emplace_back(source, Sums{});
    const std::string& demand = table.texts("demand")[i];
    ++by_demand[demand];
    for (Sums* sums : {&by_source.back().second, &all}) {
      ++sums->rows;
      sums->words += table.integers("words")[i];
      sums->demands += demand == demand_name(DemandType::none) ? 0 : 1;
      sums->woven += table.integers("woven")[i];
    }
  }
  by_source.emplace_back("all", all);
  std::string text = "source                        rows  mean words  demands  woven in  appended\n";
  for (const auto& [source, sums] : by_source) {
    text += fmt::format("{:<26}  {:>6}  {:>10.1f}  {:>7}  {:>8}  {:>8}\n", source, sums.rows,
                        static_cast<double>(sums.words) / static_cast<double>(sums.rows), sums.demands,
                        sums.woven, sums.demands - sums.woven);
  }
  text += "demands:";
  for (const DemandType type : {DemandType::about, DemandType::range, DemandType::above, DemandType::below})
    text += fmt::format(" {} {}", demand_name(type), by_demand[std::string(demand_name(type))]);
  return text + "\n";
}

}  // namespace sl
