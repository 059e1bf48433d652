#include "cli/scoring.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include "core/log.hpp"
#include "dist/work_queue.hpp"
#include "model/training_pass.hpp"

namespace sl {
namespace {

// Consecutive rows whose tokens fit into one pass together; rows of one token need none.
std::vector<std::vector<int64_t>> make_passes(const std::vector<TrainingRow>& rows, int64_t pass_tokens) {
  std::vector<std::vector<int64_t>> passes;
  int64_t used = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto needed = static_cast<int64_t>(rows[i].tokens.size()) - 1;
    if (needed == 0) continue;
    if (passes.empty() || used + needed > pass_tokens) {
      passes.emplace_back();
      used = 0;
    }
    passes.back().push_back(static_cast<int64_t>(i));
    used += needed;
  }
  return passes;
}

// Log-probabilities by row of what this replica took; collective over all ranks.
std::map<int64_t, std::vector<double>> score_rows(Ranks& ranks, TrainingPass& pass, const Adapter* adapter,
                                                  const std::vector<TrainingRow>& rows,
                                                  const std::vector<std::vector<int64_t>>& passes) {
  constexpr int64_t whole = std::numeric_limits<int64_t>::max();
  std::map<int64_t, std::vector<double>> scored;
  SharedCounters counters(ranks.session, 1);
  std::vector<int64_t> pending(passes.size());
  std::iota(pending.begin(), pending.end(), 0);
  WorkQueue queue(counters, 0, *ranks.groups.tensor, std::move(pending));
  for (auto taken = queue.next(1); !taken.empty(); taken = queue.next(1)) {
    const std::vector<int64_t>& chosen = passes[static_cast<size_t>(taken.front())];
    const std::vector<PackedBatch> batches = pack(rows, chosen, whole, whole, 1.0F);
    require(batches.size() == 1, "the rows of a pass did not fit into one batch");
    const std::vector<double> logs = pass.log_probabilities(batches.front(), adapter);
    auto at = logs.begin();
    for (const int64_t row : chosen) {
      const auto count = static_cast<int64_t>(rows[static_cast<size_t>(row)].tokens.size()) - 1;
      require(logs.end() - at >= count, "a pass gave too few log-probabilities");
      scored[row] = {at, at + count};
      at += count;
    }
  }
  return scored;
}

// The figures of all replicas on rank 0, bit for bit; elsewhere nothing.
std::map<int64_t, std::vector<double>> gather(Ranks& ranks,
                                              const std::map<int64_t, std::vector<double>>& own) {
  nlohmann::json part = nlohmann::json::array();
  for (const auto& [row, logs] : own) {
    if (ranks.leader()) part.push_back({row, logs});
  }
  std::map<int64_t, std::vector<double>> all;
  for (const std::string& text : ranks.groups.world->all_gather(part.dump())) {
    if (!ranks.first()) continue;
    for (const nlohmann::json& one : nlohmann::json::parse(text)) {
      for (const nlohmann::json& value : one[1]) {
        // JSON has no infinities or NaN; they arrive as null.
        if (!value.is_number())
          throw InputError("a log-probability is not finite", "--model", "check that its weights are sound");
      }
      all.emplace(one[0].get<int64_t>(), one[1].get<std::vector<double>>());
    }
  }
  return all;
}

}  // namespace

void add_pass_option(CommandLine& line, int64_t& pass_tokens) {
  line.group("Memory");
  line.add("pass-tokens", pass_tokens,
           "rows are packed into passes of so many tokens; a longer row has its own", at_least(1));
}

std::vector<std::vector<double>> log_probabilities(Ranks& ranks, const ModelChoice& choice,
                                                   ModelSource source, const std::vector<TrainingRow>& rows,
                                                   int64_t pass_tokens) {
  int64_t longest = 1, total = 0;
  for (const TrainingRow& row : rows) {
    longest = std::max(longest, static_cast<int64_t>(row.tokens.size()) - 1);
    total += static_cast<int64_t>(row.tokens.size());
  }
  std::vector<LoraShape> shapes;
  if (!choice.adapter.empty()) shapes.push_back(read_lora_shape(choice.adapter));
  const auto model = load_model(std::move(source), ranks, ServedAdapters::room_for(shapes));
  const std::optional<Adapter> adapter = load_chosen_adapter(choice, *model);
  const int64_t pass_rows = std::max(longest, std::min(pass_tokens, total));
  TrainingPass pass(
      model->transformer(),
      {.max_rows = pass_rows, .lora_rank = adapter ? adapter->shape().rank : 0, .gradients = false},
      std::numeric_limits<int64_t>::max());
  log_memory();

  const Stopwatch watch;
  const auto own = score_rows(ranks, pass, adapter ? &*adapter : nullptr, rows, make_passes(rows, pass_rows));
  const auto found = gather(ranks, own);
  if (!ranks.first()) return {};
  std::vector<std::vector<double>> all(rows.size());
  for (const auto& [row, logs] : found) all[static_cast<size_t>(row)] = logs;
  for (size_t i = 0; i < rows.size(); ++i)
    require(all[i].size() + 1 == rows[i].tokens.size(), "a row has not been scored");
  const double seconds = watch.seconds();
  spdlog::info("{} rows, {} tokens in {:.1f} s: {:.1f} tokens/s", rows.size(), total, seconds,
               static_cast<double>(total) / std::max(seconds, 1e-9));
  return all;
}

}  // namespace sl
