// generate: responses to prompts, over any number of ranks.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <list>
#include <map>

#include "cli/commands.hpp"
#include "cli/launch.hpp"
#include "cli/rows.hpp"
#include "core/log.hpp"
#include "core/rng.hpp"
#include "lengthen/progress.hpp"
#include "rollout/engine.hpp"
#include "rollout/flow.hpp"
#include "rollout/model_step.hpp"

namespace sl {
namespace {

using nlohmann::json;

struct GenerateOptions {
  ModelChoice model;
  SamplingParameters sampling;
  EngineChoice engine;
  FileChoice files;
  uint64_t seed = 1;
  bool raw = false;
};

void define(CommandLine& line, GenerateOptions& options) {
  add_model_options(line, options.model);
  add_file_options(
      line, options.files,
      "rows {\"prompt\"} or {\"messages\": [{\"role\", \"content\"}, ...]} or {\"prompt_tokens\"}",
      "the row plus \"response\", \"tokens\" and \"finish_reason\", in the order of the input");
  line.add("raw", options.raw, "send a prompt as it is, without chat turns");
  add_sampling_options(line, options.sampling);
  line.add("seed", options.seed, "of the draws; a row's response depends on it and on the row's number");
  add_engine_options(line, options.engine);
  line.note(
      "Messages that end with the assistant's are continued. finish_reason is stop (an end token or a "
      "stop text), length (--max-tokens) or context (no positions or pages are left). tokens are all "
      "that were generated, the ending one included.");
  line.example("selflengthen generate --model MODEL --input prompts.jsonl --output responses.jsonl");
  line.example(
      "mpirun -n 4 selflengthen generate --model MODEL --tp 2 --temperature 0 --max-tokens 500 "
      "--input prompts.jsonl --output -");
}

std::vector<Message> messages_of(const JsonRow& row, const std::string& path) {
  const std::string where = place_of_row(row, path);
  const json& list = row.value["messages"];
  if (!list.is_array() || list.empty())
    throw InputError("'messages' is not a list with a message in it", where,
                     "see selflengthen generate --help");
  std::vector<Message> messages;
  for (const json& one : list) {
    if (!one.is_object() || !one.contains("role") || !one["role"].is_string() || !one.contains("content") ||
        !one["content"].is_string())
      throw InputError("a message has no string 'role' or no string 'content'", where, "add it");
    messages.push_back({one["role"].get<std::string>(), one["content"].get<std::string>()});
    const std::string& role = messages.back().role;
    if (role != "system" && role != "user" && role != "assistant")
      throw InputError(fmt::format("role '{}' is not known", role), where, "use system, user or assistant");
  }
  return messages;
}

// What can be wrong with a row before the model is known.
void check_row(const JsonRow& row, const std::string& path, bool raw) {
  const int forms = static_cast<int>(row.value.contains("prompt")) +
                    static_cast<int>(row.value.contains("messages")) +
                    static_cast<int>(row.value.contains("prompt_tokens"));
  const std::string where = place_of_row(row, path);
  if (forms == 0)
    throw InputError("has neither 'prompt' nor 'messages'", where, "add one of them to the row");
  if (row.value.contains("messages")) {
    if (raw)
      throw InputError("has 'messages', which are chat turns", where, "give a 'prompt', or leave out --raw");
    messages_of(row, path);
  } else if (row.value.contains("prompt")) {
    required_string(row, "prompt", path);
  }
}

// A row's own prompt_tokens win over what they were made of.
std::vector<int32_t> prompt_of(const JsonRow& row, const ModelSource& source,
                               const GenerateOptions& options) {
  const std::string& path = options.files.input;
  std::vector<int32_t> tokens;
  if (row.value.contains("prompt_tokens")) {
    tokens = token_ids(row, "prompt_tokens", source.config.vocabulary, path);
  } else if (row.value.contains("messages")) {
    const std::vector<Message> messages = messages_of(row, path);
    const bool begun = messages.back().role == "assistant";
    tokens = source.chat->encode(messages, begun ? ChatOpen::begun : ChatOpen::reply);
  } else {
    const std::string prompt = required_string(row, "prompt", path);
    const Message message{"user", prompt};
    tokens = options.raw ? source.tokenizer->encode(prompt, /*add_special=*/true)
                         : source.chat->encode(std::span(&message, 1), ChatOpen::reply);
  }
  const std::string where = place_of_row(row, path);
  if (tokens.empty()) throw InputError("its prompt is empty", where, "give it at least one character");
  const auto count = static_cast<int64_t>(tokens.size());
  if (count >= source.config.max_positions) {
    throw InputError(fmt::format("its prompt of {} tokens fills the model's {} positions", count,
                                 source.config.max_positions),
                     where, "shorten it");
  }
  return tokens;
}

// One replica's part of the work: takes rows as long as there are any, and keeps as many running as the
// engine holds.
class Generation {
 public:
  Generation(Ranks& ranks, Engine& engine, const std::vector<Request>& requests, int64_t max_running)
      : ranks_(ranks),
        engine_(engine),
        requests_(requests),
        total_(static_cast<int64_t>(requests.size())),
        max_running_(std::min(max_running, (total_ + ranks.groups.grid.dp - 1) / ranks.groups.grid.dp)),
        counters_(ranks.session, 2),
        queue_(counters_, 0, *ranks.groups.tensor, all_rows(total_)) {}

  void run(Progress& progress) {
    bool left = true;
    while (true) {
      while (left && static_cast<int64_t>(running_.size()) < max_running_) {
        const std::vector<int64_t> rows = queue_.next(1);
        left = !rows.empty();
        for (const int64_t row : rows) {
          running_.push_back(answer(row));
          running_.back().start();
        }
      }
      if (running_.empty()) break;
      engine_.step();
      const size_t before = running_.size();
      std::erase_if(running_, [](Task<>& task) {
        if (!task.done()) return false;
        task.result();
        return true;
      });
      if (ranks_.leader()) counters_.fetch_add(1, static_cast<int64_t>(before - running_.size()));
      if (ranks_.first()) progress.update({"generate", 0, counters_.read(1), total_, engine_.statistics()});
    }
  }

  // This replica's completions, by row.
  const std::map<int64_t, Completion>& completions() const { return completions_; }

 private:
  static std::vector<int64_t> all_rows(int64_t count) {
    std::vector<int64_t> rows;
    for (int64_t row = 0; row < count; ++row) rows.push_back(row);
    return rows;
  }

  Task<> answer(int64_t row) {
    Completion completion = co_await engine_.complete(requests_[static_cast<size_t>(row)]);
    completions_.emplace(row, std::move(completion));
  }

  Ranks& ranks_;
  Engine& engine_;
  const std::vector<Request>& requests_;
  int64_t total_, max_running_;
  SharedCounters counters_;  // 0: rows handed out, 1: rows done
  WorkQueue queue_;
  std::list<Task<>> running_;
  std::map<int64_t, Completion> completions_;
};

// The completions of all replicas as JSON, on rank 0; elsewhere nothing.
std::map<int64_t, json> gather(Ranks& ranks, const std::map<int64_t, Completion>& own) {
  json part = json::array();
  for (const auto& [row, completion] : own) {
    if (!ranks.leader()) break;
    part.push_back({row, completion.text, completion.tokens, finish_reason_name(completion.finish)});
  }
  std::map<int64_t, json> all;
  for (const std::string& text : ranks.groups.world->all_gather(to_line(part))) {
    if (!ranks.first()) continue;
    for (json& one : json::parse(text)) all.emplace(one[0].get<int64_t>(), std::move(one));
  }
  return all;
}

void report(Ranks& ranks, const EngineStatistics& own, size_t rows, double seconds) {
  double counts[] = {0.0, 0.0, 0.0};
  if (ranks.leader()) {
    counts[0] = static_cast<double>(own.generated_tokens);
    counts[1] = static_cast<double>(own.prompt_tokens_computed);
    counts[2] = static_cast<double>(own.prompt_tokens_shared);
  }
  ranks.groups.world->all_reduce_sum(std::span<double>(counts));
  if (!ranks.first()) return;
  spdlog::info(
      "{} rows, {:.0f} tokens in {:.1f} s: {:.1f} tokens/s; prompts: {:.0f} tokens computed, {:.0f} shared",
      rows, counts[0], seconds, counts[0] / std::max(seconds, 1e-9), counts[1], counts[2]);
}

}  // namespace

int generate_command(const Arguments& arguments) {
  GenerateOptions options;
  CommandLine line("generate", "Responses of a model to prompts, many at a time, on one rank or on many.");
  define(line, options);
  if (!line.parse(arguments)) return 0;
  options.sampling.validate();
  resolve_device(options.model.device);
  RowOutput::check(options.files.output);
  std::vector<JsonRow> rows = read_json_lines(options.files.input);
  for (const JsonRow& row : rows) check_row(row, options.files.input, options.raw);

  Ranks ranks = start_ranks(options.model);
  ModelSource source = open_model(options.model.model);
  std::vector<Request> requests;
  int64_t longest = 0;
  for (const JsonRow& row : rows) {
    Request request;
    request.prompt = prompt_of(row, source, options);
    request.sampling = options.sampling;
    request.stream = stream_of({.seed = options.seed, .sample = static_cast<int64_t>(requests.size())});
    request.end_tokens = source.end_tokens;
    request.adapter = options.model.adapter.empty() ? -1 : 0;
    longest = std::max(longest, static_cast<int64_t>(request.prompt.size()));
    requests.push_back(std::move(request));
  }
  longest = longest < source.config.max_positions - options.sampling.max_tokens
                ? longest + options.sampling.max_tokens
                : source.config.max_positions;
  std::unique_ptr<RowOutput> output;
  if (ranks.first()) output = std::make_unique<RowOutput>(options.files.output);

  std::vector<LoraShape> shapes;
  if (!options.model.adapter.empty()) shapes.push_back(read_lora_shape(options.model.adapter));
  const auto model = load_model(std::move(source), ranks, ServedAdapters::room_for(shapes));
  const std::optional<Adapter> adapter = load_chosen_adapter(options.model, *model);
  const EngineLimits limits = engine_limits(options.engine, model->transformer(), longest);
  const EngineOptions engine_options{.max_batch_rows = limits.max_batch_rows,
                                     .max_sequences = limits.max_sequences,
                                     .max_positions = limits.max_positions};
  ModelStep step(model->transformer(), engine_options, limits.pages, limits.tokens_per_page);
  if (adapter) step.set_adapters(std::vector{&*adapter});
  Engine engine(step, model->tokenizer(), engine_options);
  log_memory();

  Progress progress(ranks.first(), ranks.groups.grid.dp);
  const auto begin = std::chrono::steady_clock::now();
  Generation generation(ranks, engine, requests, limits.max_sequences);
  generation.run(progress);
  progress.finish();
  std::map<int64_t, json> all = gather(ranks, generation.completions());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  if (output) {
    require(all.size() == rows.size(), "some rows have no response");
    for (size_t i = 0; i < rows.size(); ++i) {
      json& result = all[static_cast<int64_t>(i)];
      json& value = rows[i].value;
      value["response"] = std::move(result[1]);
      value["tokens"] = std::move(result[2]);
      value["finish_reason"] = std::move(result[3]);
      output->write(value);
    }
    output->close();
  }
  report(ranks, engine.statistics(), rows.size(), seconds.count());
  return 0;
}

}  // namespace sl
