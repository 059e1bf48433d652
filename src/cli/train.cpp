// train: supervised fine-tuning of an adapter or of all weights on given conversations, resumable.
#include <fmt/format.h>

#include <filesystem>
#include <span>

#include "cli/commands.hpp"
#include "cli/launch.hpp"
#include "cli/rows.hpp"
#include "core/activity.hpp"
#include "core/log.hpp"
#include "io/durable.hpp"
#include "io/run_folder.hpp"
#include "model/export.hpp"
#include "train/training_checkpoint.hpp"

namespace sl {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct TrainChoice {
  ModelChoice model;
  TrainingChoice training;
  TrainingOptions options;
  std::string data, output;
  double stall_timeout = default_stall_timeout;

  bool full() const { return options.finetune == Finetune::full; }
  // Written last: where it is, the training is finished.
  std::string last_file() const { return output + (full() ? "/config.json" : "/adapter_config.json"); }
  std::string checkpoint() const { return output + "/checkpoint.h5"; }
};

std::vector<Message> conversation_of(const JsonRow& row, const std::string& path) {
  const std::string where = place_of_row(row, path);
  if (!row.value.contains("messages")) {
    if (!row.value.contains("instruction"))
      throw InputError("has neither 'messages' nor 'instruction'", where, "add one of them to the row");
    return {{"user", required_string(row, "instruction", path)},
            {"assistant", required_string(row, "output", path)}};
  }
  std::vector<Message> messages;
  if (!row.value["messages"].is_array()) throw InputError("'messages' is not a list", where, "make it one");
  for (const json& one : row.value["messages"]) {
    if (!one.is_object() || !one.contains("role") || !one["role"].is_string() || !one.contains("content") ||
        !one["content"].is_string())
      throw InputError("a message has no string 'role' or no string 'content'", where, "add it");
    messages.push_back({one["role"].get<std::string>(), one["content"].get<std::string>()});
    const std::string& role = messages.back().role;
    if (role != "system" && role != "user" && role != "assistant")
      throw InputError(fmt::format("role '{}' is not known", role), where, "use system, user or assistant");
  }
  if (messages.empty() || messages.back().role != "assistant")
    throw InputError("does not end with an answer of the assistant", where, "end it with one");
  return messages;
}

bool agreed(Ranks& ranks, bool mine) {
  int64_t any = mine ? 1 : 0;
  ranks.groups.world->all_reduce_max(std::span(&any, 1));
  return any != 0;
}

// Steps after the checkpoint are taken again: their rows go, and a line that was cut short.
void keep_metrics_to(const std::string& path, int64_t step) {
  const std::string text = read_if_there(path).value_or("");
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string line = text.substr(begin, end - begin + 1);
    const json row = json::parse(line, nullptr, /*allow_exceptions=*/false);
    const bool counted = row.is_object() && row.contains("step") && row["step"].is_number_integer();
    if (counted && row["step"].get<int64_t>() <= step) kept += line;
    begin = end + 1;
  }
  write_atomically(path, kept);
}

int train(TrainChoice& choice, const std::vector<std::vector<Message>>& conversations) {
  Ranks ranks = start_ranks(choice.model);
  catch_stop_signals();
  if (agreed(ranks, ranks.first() && fs::exists(choice.last_file()))) {
    if (ranks.first())
      spdlog::info("{}: this training is finished; another one wants another --output", choice.output);
    return 0;
  }
  const RunFolder folder(choice.output);
  std::unique_ptr<RunLock> lock;
  if (ranks.first()) lock = std::make_unique<RunLock>(folder);

  const auto watchdog = watch_over(ranks, folder, choice.stall_timeout, [](const std::string&) {});
  activity().stage("training");

  LoraShape lora = choice.options.lora;
  if (!choice.model.adapter.empty()) lora = read_lora_shape(choice.model.adapter);
  const int64_t room = choice.full() ? 0 : ServedAdapters::room_for(std::span(&lora, 1));
  const auto model = load_model(open_model(choice.model.model), ranks, room);
  std::vector<TrainingRow> rows;
  for (const auto& conversation : conversations) {
    TrainingTokens encoded = model->chat().encode_training(conversation);
    rows.push_back({std::move(encoded.tokens), std::move(encoded.mask)});
    activity().progress();
  }
  std::optional<Adapter> adapter;
  std::optional<Parameters> exact;  // what is trained of a model that is stored as bf16
  Trainable trained;
  if (choice.full()) {
    trained.parameters = &model->parameters();
    if (ranks.context.storage != DType::f32) {
      // Replicas share the exact weights out, and want them all at the beginning and the end only.
      const Device place = ranks.groups.grid.dp > 1 ? Device::cpu : ranks.context.device;
      exact = load_parameters(model->config(), model->shard(), place, *model->source().weights);
      trained.parameters = &*exact;
    }
  } else {
    if (!choice.model.adapter.empty()) {
      adapter = model->exact_adapter_from(choice.model.adapter);
    } else {
      adapter.emplace(model->config(), model->shard(), lora, ranks.context.device, "adapter");
      initialise(*adapter, choice.options.seed);
    }
    trained.adapter = &*adapter;
  }
  Trainer trainer(model->transformer(), trained, std::move(rows), choice.options, *ranks.groups.data);
  TrainingCheckpoint checkpoint(trainer, choice.checkpoint(), *ranks.groups.world);
  log_memory();
  checkpoint.resume();
  if (ranks.first()) keep_metrics_to(folder.metrics(), trainer.state().step);

  while (trainer.state().step < trainer.total_steps()) {
    if (agreed(ranks, stop_signal != 0)) {
      checkpoint.finish();
      if (ranks.first()) spdlog::info("stopped at a signal; the same command continues {}", choice.output);
      return 0;
    }
    trainer.step();
    const StepRecord& step = trainer.last();
    if (ranks.first()) {
      folder.append_metrics({{"step", step.step},
                             {"epoch", step.epoch},
                             {"loss", step.loss},
                             {"learning_rate", step.learning_rate},
                             {"grad_norm", step.grad_norm},
                             {"tokens_per_second", step.tokens_per_second},
                             {"tflops", step.tflops},
                             {"skipped", step.skipped}});
      spdlog::info("step {}/{}: loss {:.4f}, {:.1f} tokens/s", step.step, trainer.total_steps(), step.loss,
                   step.tokens_per_second);
    }
    checkpoint.poll();
    if (choice.options.checkpoint_every > 0 && step.step % choice.options.checkpoint_every == 0)
      checkpoint.save();
  }
  trainer.collect();
  const bool writer = ranks.groups.place.replica == 0;
  if (choice.full()) {
    write_model_files(choice.output, model->source(), *trained.parameters, "F32", writer,
                      *ranks.groups.tensor);
  } else {
    save_adapter(*adapter, choice.output, choice.model.model, writer, *ranks.groups.tensor);
  }
  ranks.groups.world->barrier();
  checkpoint.remove();
  return 0;
}

}  // namespace

int train_command(const Arguments& arguments) {
  TrainChoice choice;
  CommandLine line(
      "train",
      "Supervised fine-tuning on conversations; only the assistant's tokens are learnt. The same "
      "command continues a training that was stopped.");
  add_model_options(line, choice.model);
  line.group("Files");
  line.add("data", choice.data, "JSON lines: rows {\"messages\"} or {\"instruction\", \"output\"}")
      .value_name("FILE")
      .required();
  line.add("output", choice.output, "gets the adapter or the model, and metrics.jsonl")
      .value_name("DIR")
      .required();
  add_stall_option(line, choice.stall_timeout);
  add_training_options(line, choice.options, choice.training);
  line.add("seed", choice.options.seed, "of the order of the rows, and of a fresh adapter");
  line.add("shuffle", choice.options.shuffle, "another order of the rows in every epoch");
  line.note("--adapter is where the training starts; with it, rank and alpha are that adapter's.");
  line.example("selflengthen train --model MODEL --data answers.jsonl --output my_adapter");
  if (!line.parse(arguments)) return 0;
  apply(choice.training, choice.options);
  if (choice.full() && !choice.model.adapter.empty()) {
    throw InputError("starts from an adapter, but all weights are to be trained", "--adapter",
                     "merge it first (selflengthen export), or use --finetune lora");
  }
  if (fs::exists(choice.output) && !fs::is_directory(choice.output))
    throw InputError("is a file, not a folder", choice.output, "choose another --output");
  std::vector<std::vector<Message>> conversations;
  for (const JsonRow& row : read_json_lines(choice.data))
    conversations.push_back(conversation_of(row, choice.data));
  return train(choice, conversations);
}

}  // namespace sl
