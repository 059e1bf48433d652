#include "lengthen/rollout_stages.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/log.hpp"
#include "lengthen/extend.hpp"
#include "lengthen/instruct.hpp"
#include "lengthen/length_bias.hpp"
#include "lengthen/respond.hpp"
#include "text/rules.hpp"

namespace sl {
namespace {

std::map<std::string, std::string> attributes_of(const StageReport& report) {
  return {{"report", report.to_json().dump()}};
}
std::vector<int64_t> integers(const std::vector<nlohmann::json>& records, const char* key) {
  std::vector<int64_t> values;
  for (const nlohmann::json& record : records) values.push_back(record.at(key).get<int64_t>());
  return values;
}
std::vector<std::string> texts(const std::vector<nlohmann::json>& records, const char* key) {
  std::vector<std::string> values;
  for (const nlohmann::json& record : records) values.push_back(record.at(key).get<std::string>());
  return values;
}

}  // namespace

Table RolloutStages::table_of(const std::string& stage, const std::function<Table()>& make) {
  const std::string path = session_.folder.stage_file(number_, stage);
  if (session_.finished(path)) {
    // A run killed between the file and the removal of its journals has left them.
    if (session_.first()) session_.folder.remove_journals(number_, stage);
    return read_table(path);
  }
  const Table table = make();
  const Range slice = share_of(table.rows(), session_.groups.world->size(), session_.groups.world->rank());
  write_table(path, table.slice(slice.begin, slice.end), session_.groups.raw_world, session_.tables);
  if (session_.first()) session_.folder.remove_journals(number_, stage);
  session_.progress.finish();
  if (session_.first())
    spdlog::info("{}{} written with {} rows", session_.folder.label(number_), path, table.rows());
  return table;
}

// The times go to the metrics alone: equal content is equal bytes in the dataset.
void RolloutStages::note(StageId stage, const StageResult& result, const Stopwatch& watch) {
  if (!session_.first()) return;
  const StageReport& report = result.report;
  nlohmann::json row = report.to_json();
  row["seconds"] = watch.seconds();
  row["tokens_before"] = result.tokens_before;
  row["replicas"] = result.replicas_to_json();
  row[session_.folder.part()] = number_;
  row["stage"] = stage_name(stage);
  session_.folder.append_metrics(row);
  session_.progress.finish();
  spdlog::info("{}{}: {}", session_.folder.label(number_), stage_name(stage), report.to_json().dump());
}

// Stage 0. A growing pool grows between waves, so that its order of draws does not depend on who is faster.
Table RolloutStages::instruct(Engine& engine) {
  const Stopwatch watch;
  StageResult all;
  const bool growing = method().instruction_pool == InstructionPool::growing;
  const int64_t wave = growing ? method().instruction_wave : method().instructions;
  std::vector<std::string> pool = seeds_;
  for (int64_t begin = 0; begin < method().instructions;) {
    const int64_t round_end = growing ? (begin / method().instruction_round + 1) * method().instruction_round
                                      : method().instructions;
    if (growing && begin % method().instruction_round == 0) pool = seeds_;
    const int64_t end = std::min({begin + wave, round_end, method().instructions});
    StageResult part = run_stage(session_, engine,
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
    accepted_nothing("no instruction was accepted",
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
Table RolloutStages::respond_to(const Table& instructions, Engine& engine) {
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
Table RolloutStages::extend_all(const Table& initial, Engine& engine) {
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
Table RolloutStages::response_table(StageId stage, const StageResult& result) const {
  if (result.accepted.empty()) {
    accepted_nothing(fmt::format("no response of stage '{}' was accepted", stage_name(stage)),
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

void RolloutStages::accepted_nothing(const std::string& what, const std::string& remedy) const {
  if (!may_be_empty_) throw InputError(what, session_.folder.path(), remedy);
  if (session_.first()) spdlog::warn("{}{}", session_.folder.label(number_), what);
}

void RolloutStages::refuse(const std::string& what) const {
  throw InputError(what, session_.folder.iteration(number_),
                   "use more --instructions, --responses or --extensions");
}

}  // namespace sl
