#include "cli/answerer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <list>

#include "core/log.hpp"
#include "io/json_lines.hpp"
#include "lengthen/progress.hpp"

namespace sl {
namespace {

int64_t adapter_room(const ModelChoice& choice) {
  std::vector<LoraShape> shapes;
  if (!choice.adapter.empty()) shapes.push_back(read_lora_shape(choice.adapter));
  return ServedAdapters::room_for(shapes);
}

}  // namespace

AnsweringModel::AnsweringModel(const ModelChoice& choice)
    : choice_(choice), source_(open_model(choice.model)) {}

const LoadedModel& AnsweringModel::load(Ranks& ranks) {
  if (!loaded_) {
    loaded_ = load_model(std::move(source_), ranks, adapter_room(choice_));
    adapter_ = load_chosen_adapter(choice_, *loaded_);
  }
  return *loaded_;
}

Answerer::Answerer(AnsweringModel& model, const EngineChoice& engine, Ranks& ranks, int64_t longest)
    : ranks_(ranks),
      limits_(engine_limits(engine, model.load(ranks).transformer(), longest)),
      options_{.max_batch_rows = limits_.max_batch_rows,
               .max_sequences = limits_.max_sequences,
               .max_positions = limits_.max_positions},
      step_(model.load(ranks).transformer(), options_, limits_.pages, limits_.tokens_per_page),
      engine_(step_, model.load(ranks).tokenizer(), options_) {
  if (model.adapter()) step_.set_adapters(std::vector{&*model.adapter()});
  log_memory();
}

std::map<int64_t, nlohmann::json> Answerer::answer(const std::string& what, const std::vector<int64_t>& rows,
                                                   const Flow& flow, const Finished& finished) {
  const EngineStatistics before = engine_.statistics();
  const Stopwatch watch;
  auto all = gather(take_rows(what, rows, flow, finished));
  require(!ranks_.first() || all.size() == rows.size(), "some rows have no record");
  report_speed(before, rows.size(), watch.seconds());
  return all;
}

std::map<int64_t, nlohmann::json> Answerer::take_rows(const std::string& what,
                                                      const std::vector<int64_t>& rows, const Flow& flow,
                                                      const Finished& finished) {
  struct Running {
    int64_t row;
    Task<nlohmann::json> task;
  };
  const auto total = static_cast<int64_t>(rows.size());
  const int64_t replicas = ranks_.groups.grid.dp;
  const int64_t at_once = std::min(limits_.max_sequences, (total + replicas - 1) / replicas);
  SharedCounters counters(ranks_.session, 2);  // 0: rows handed out, 1: rows done
  WorkQueue queue(counters, 0, *ranks_.groups.tensor, rows);
  Progress progress(ranks_.first(), ranks_.groups.grid.dp);
  std::list<Running> running;
  std::map<int64_t, nlohmann::json> records;
  for (bool left = true;;) {
    while (left && static_cast<int64_t>(running.size()) < at_once) {
      const std::vector<int64_t> taken = queue.next(1);
      left = !taken.empty();
      for (const int64_t row : taken) {
        running.push_back({row, flow(row)});
        running.back().task.start();
      }
    }
    if (running.empty()) break;
    if (!engine_.idle()) engine_.step();
    const size_t before = running.size();
    std::erase_if(running, [&](Running& one) {
      if (!one.task.done()) return false;
      const auto [at, fresh] = records.emplace(one.row, one.task.result());
      if (finished && ranks_.leader()) finished(at->first, at->second);
      return true;
    });
    if (ranks_.leader()) counters.fetch_add(1, static_cast<int64_t>(before - running.size()));
    if (ranks_.first()) progress.update({what, 0, counters.read(1), total, engine_.statistics()});
  }
  progress.finish();
  return records;
}

std::map<int64_t, nlohmann::json> Answerer::gather(const std::map<int64_t, nlohmann::json>& own) {
  nlohmann::json part = nlohmann::json::array();
  for (const auto& [row, record] : own) {
    if (ranks_.leader()) part.push_back({row, record});
  }
  std::map<int64_t, nlohmann::json> all;
  for (const std::string& text : ranks_.groups.world->all_gather(to_line(part))) {
    if (!ranks_.first()) continue;
    for (nlohmann::json& one : nlohmann::json::parse(text))
      all.emplace(one[0].get<int64_t>(), std::move(one[1]));
  }
  return all;
}

void Answerer::report_speed(const EngineStatistics& before, size_t rows, double seconds) {
  double counts[] = {0.0, 0.0, 0.0};
  if (ranks_.leader()) {
    const EngineStatistics now = engine_.statistics();
    counts[0] = static_cast<double>(now.generated_tokens - before.generated_tokens);
    counts[1] = static_cast<double>(now.prompt_tokens_computed - before.prompt_tokens_computed);
    counts[2] = static_cast<double>(now.prompt_tokens_shared - before.prompt_tokens_shared);
  }
  ranks_.groups.world->all_reduce_sum(std::span<double>(counts));
  if (!ranks_.first()) return;
  spdlog::info(
      "{} rows, {:.0f} tokens in {:.1f} s: {:.1f} tokens/s; prompts: {:.0f} tokens computed, {:.0f} shared",
      rows, counts[0], seconds, counts[0] / std::max(seconds, 1e-9), counts[1], counts[2]);
}

int64_t longest_sequence(const std::vector<Request>& requests, const ModelConfig& config) {
  int64_t longest = 0;
  for (const Request& request : requests) {
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    const int64_t room = std::max<int64_t>(config.max_positions - prompt, 0);
    longest = std::max(longest, prompt + std::min(room, request.sampling.max_tokens));
  }
  return longest;
}

void check_prompt(const std::vector<int32_t>& tokens, const ModelConfig& config, const std::string& where) {
  if (tokens.empty()) throw InputError("its prompt is empty", where, "give it at least one character");
  const auto count = static_cast<int64_t>(tokens.size());
  if (count >= config.max_positions) {
    throw InputError(
        fmt::format("its prompt of {} tokens fills the model's {} positions", count, config.max_positions),
        where, "shorten it");
  }
}

}  // namespace sl
