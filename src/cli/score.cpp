// score: the log-probability of every token of texts.
#include <fmt/format.h>

#include <cmath>
#include <numeric>

#include "cli/commands.hpp"
#include "cli/rows.hpp"
#include "cli/scoring.hpp"

namespace sl {
namespace {

using nlohmann::json;

struct ScoreOptions {
  ModelChoice model;
  FileChoice files;
  int64_t pass_tokens = default_pass_tokens;
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

void write_rows(RowOutput& output, std::vector<JsonRow>& rows, const std::vector<TrainingRow>& tokens,
                const std::vector<std::vector<double>>& scored) {
  for (size_t i = 0; i < rows.size(); ++i) {
    json& value = rows[i].value;
    const std::vector<double>& logs = scored[i];
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
  add_pass_option(line, options.pass_tokens);
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
  for (const JsonRow& row : rows) tokens.push_back(tokens_of(row, source, options.files.input));
  std::unique_ptr<RowOutput> output;
  if (ranks.first()) output = std::make_unique<RowOutput>(options.files.output);
  const auto scored = log_probabilities(ranks, options.model, std::move(source), tokens, options.pass_tokens);
  if (output) write_rows(*output, rows, tokens, scored);
  return 0;
}

}  // namespace sl
