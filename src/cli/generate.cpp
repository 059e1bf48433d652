// generate: responses to prompts, over any number of ranks.
#include <fmt/format.h>

#include <memory>

#include "cli/answerer.hpp"
#include "cli/commands.hpp"
#include "cli/rows.hpp"
#include "core/rng.hpp"

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
  add_beam_options(line, options.sampling);
  line.add("seed", options.seed, "of the draws; a row's response depends on it and on the row's number");
  add_engine_options(line, options.engine);
  line.note(
      "Messages that end with the assistant's are continued. finish_reason is stop (an end token or a "
      "stop text), length (--max-tokens) or context (no positions or pages are left). tokens are all "
      "that were generated, the ending one included. With --beams rows also have \"score\".");
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
  check_prompt(tokens, source.config, place_of_row(row, path));
  return tokens;
}

Task<json> respond(Engine& engine, const Request& request) {
  const Completion completion = co_await engine.complete(request);
  json answer = {{"response", completion.text},
                 {"tokens", completion.tokens},
                 {"finish_reason", finish_reason_name(completion.finish)}};
  if (request.has_beams()) answer["score"] = completion.score;
  co_return answer;
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
  AnsweringModel model(options.model);
  const ModelSource& source = model.source();
  std::vector<Request> requests;
  std::vector<int64_t> numbers;
  for (const JsonRow& row : rows) {
    Request request;
    request.prompt = prompt_of(row, source, options);
    request.sampling = options.sampling;
    request.stream = stream_of({.seed = options.seed, .sample = static_cast<int64_t>(requests.size())});
    request.end_tokens = source.end_tokens;
    request.adapter = options.model.adapter.empty() ? -1 : 0;
    numbers.push_back(static_cast<int64_t>(requests.size()));
    requests.push_back(std::move(request));
  }
  std::unique_ptr<RowOutput> output;
  if (ranks.first()) output = std::make_unique<RowOutput>(options.files.output);

  const int64_t longest = longest_sequence(requests, source.config);
  Answerer answerer(model, options.engine, ranks, longest);
  const auto responses = answerer.answer("generate", numbers, [&](int64_t row) {
    return respond(answerer.engine(), requests[static_cast<size_t>(row)]);
  });
  if (output) {
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].value.update(responses.at(static_cast<int64_t>(i)));
      output->write(rows[i].value);
    }
    output->close();
  }
  return 0;
}

}  // namespace sl
