// score: the log-probability of every token of texts.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "cli/commands.hpp"
#include "cli/launch.hpp"
#include "cli/rows.hpp"
#include "core/log.hpp"
#include "model/training_pass.hpp"
#include "train/packing.hpp"

namespace sl {
namespace {

using nlohmann::json;

struct ScoreOptions {
  ModelChoice model;
  FileChoice files;
  int64_t pass_tokens = 2048;
};

// What can be wrong with a row before the model is known.
void check_row(const JsonRow& row, const std::string& path) {
  if (row.value.contains("tokens")) {
    if (!row.value["tokens"].is_array())
      throw InputError("'tokens' is not a list", place_of_row(row, path), "give token ids");
  } else if (row.value.contains("text")) {
    required_string(row, "text", path);
  } else {
    throw InputError("has neither 'text' nor 'tokens'", place_of_row(row, path),
                     "add one of them to the row");
  }
}

// All of a row is "learnt": every token from the second has a log-probability.
TrainingRow tokens_of(const JsonRow& row, const ModelSource& source, const std::string& path) {
  TrainingRow out;
  if (row.value.contains("tokens")) {
    out.tokens = token_ids(row, "tokens", source.config.vocabulary, path);
  } else {
    out.tokens = source.tokenizer->encode(required_string(row, "text", path), /*add_special=*/true);
  }
  const auto count = static_cast<int64_t>(out.tokens.size());
  if (count == 0)
    throw InputError("has no tokens", place_of_row(row, path), "give at least one, or remove the row");
  if (count > source.config.max_positions) {
    throw InputError(fmt::format("its {} tokens are more than the model's {} positions", count,
                                 source.config.max_positions),
                     place_of_row(row, path), "shorten it");
  }
  out.mask.assign(out.tokens.size(), 1);
  return out;
}

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
  json part = json::array();
  for (const auto& [row, logs] : own) {
    if (ranks.leader()) part.push_back({row, logs});
  }
  std::map<int64_t, std::vector<double>> all;
  for (const std::string& text : ranks.groups.world->all_gather(part.dump())) {
    if (!ranks.first()) continue;
    for (const json& one : json::parse(text)) {
      for (const json& value : one[1]) {
        // JSON has no infinities or NaN; they arrive as null.
        if (!value.is_number())
          throw InputError("a log-probability is not finite", "--model", "check that its weights are sound");
      }
      all.emplace(one[0].get<int64_t>(), one[1].get<std::vector<double>>());
    }
  }
  return all;
}

void write_rows(RowOutput& output, std::vector<JsonRow>& rows, const std::vector<TrainingRow>& tokens,
                const std::map<int64_t, std::vector<double>>& scored) {
  for (size_t i = 0; i < rows.size(); ++i) {
    json& value = rows[i].value;
    const auto found = scored.find(static_cast<int64_t>(i));
    const std::vector<double> logs = found == scored.end() ? std::vector<double>() : found->second;
    require(logs.size() + 1 == tokens[i].tokens.size(), "a row has not been scored");
    value["tokens"] = tokens[i].tokens;
    value["logprobs"] = logs;
    value["perplexity"] = nullptr;
    if (!logs.empty()) {
      value["perplexity"] =
          std::exp(-std::accumulate(logs.begin(), logs.end(), 0.0) / static_cast<double>(logs.size()));
    }
    output.write(value);
  }
  output.close();
}

}  // namespace

int score_command(const Arguments& arguments) {
  ScoreOptions options;
  CommandLine line("score", "How likely a model finds texts, token by token.");
  add_model_options(line, options.model);
  add_file_options(line, options.files, "rows {\"text\"} or {\"tokens\"} (which win)",
                   "the row plus \"tokens\", \"logprobs\" and \"perplexity\", in the order of the input");
  line.group("Memory");
  line.add("pass-tokens", options.pass_tokens,
           "rows are packed into passes of so many tokens; a longer row has its own", at_least(1));
  line.note(
      "A text gets the start token that the model's tokenizer adds. logprobs are natural logarithms of "
      "tokens 2 to n, perplexity is exp of minus their mean (null for a single token).");
  line.example("selflengthen score --model MODEL --input texts.jsonl --output scores.jsonl");
  if (!line.parse(arguments)) return 0;
  resolve_device(options.model.device);
  RowOutput::check(options.files.output);
  std::vector<JsonRow> rows = read_json_lines(options.files.input);
  for (const JsonRow& row : rows) check_row(row, options.files.input);

  Ranks ranks = start_ranks(options.model);
  ModelSource source = open_model(options.model.model);
  std::vector<TrainingRow> tokens;
  int64_t longest = 1, total = 0;
  for (const JsonRow& row : rows) {
    tokens.push_back(tokens_of(row, source, options.files.input));
    longest = std::max(longest, static_cast<int64_t>(tokens.back().tokens.size()) - 1);
    total += static_cast<int64_t>(tokens.back().tokens.size());
  }
  std::unique_ptr<RowOutput> output;
  if (ranks.first()) output = std::make_unique<RowOutput>(options.files.output);

  std::vector<LoraShape> shapes;
  if (!options.model.adapter.empty()) shapes.push_back(read_lora_shape(options.model.adapter));
  const auto model = load_model(std::move(source), ranks, ServedAdapters::room_for(shapes));
  const std::optional<Adapter> adapter = load_chosen_adapter(options.model, *model);
  const int64_t pass_rows = std::max(longest, std::min(options.pass_tokens, total));
  TrainingPass pass(
      model->transformer(),
      {.max_rows = pass_rows, .lora_rank = adapter ? adapter->shape().rank : 0, .gradients = false},
      std::numeric_limits<int64_t>::max());
  log_memory();

  const auto begin = std::chrono::steady_clock::now();
  const auto own =
      score_rows(ranks, pass, adapter ? &*adapter : nullptr, tokens, make_passes(tokens, pass_rows));
  const auto all = gather(ranks, own);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  if (output) write_rows(*output, rows, tokens, all);
  if (ranks.first()) {
    spdlog::info("{} rows, {} tokens in {:.1f} s: {:.1f} tokens/s", rows.size(), total, seconds.count(),
                 static_cast<double>(total) / std::max(seconds.count(), 1e-9));
  }
  return 0;
}

}  // namespace sl
