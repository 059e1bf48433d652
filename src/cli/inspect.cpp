// inspect: what is in a run, a model, an adapter, a dataset or a checkpoint; whether a run is done or
// damaged.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "cli/command_line.hpp"
#include "cli/commands.hpp"
#include "core/json_depth.hpp"
#include "io/checkpoint.hpp"
#include "io/checksum.hpp"
#include "io/dataset.hpp"
#include "io/durable.hpp"
#include "io/journal.hpp"
#include "io/run_folder.hpp"
#include "io/safetensors.hpp"
#include "lengthen/collect.hpp"
#include "lengthen/iterate.hpp"
#include "model/source.hpp"

namespace sl {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int work_left = 75;

json run_of(const std::string& path) {
  json run = RunFolder(path).read_run();
  if (run.is_null())
    throw InputError("is not the folder of a run", path, "give the folder that run was told with --out");
  return run;
}

int show_state(const std::string& path) {
  const std::string state = run_of(path).value("state", "unknown");
  fmt::print("{}\n", state);
  return state == state_name(RunState::done) ? 0 : work_left;
}

bool is_checkpoint(const fs::path& path) {
  return path.filename() == "checkpoint.h5" || path.parent_path().filename() == "checkpoint";
}

// Reads every number of a safetensors file; it has no checksums, but its header must hold.
void read_weights(const std::string& path) {
  const auto file = open_safetensors(path);
  for (const WeightInfo& tensor : file->tensors()) {
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows *= tensor.shape[i];
    const int64_t columns = tensor.shape.empty() ? 1 : tensor.shape.back();
    std::vector<float> values(static_cast<size_t>(rows * columns));
    file->read(tensor.name, {0, rows, 0, columns}, values.data());
  }
}

// The last line may be torn: it goes when the run continues.
std::string damage_of_metrics(const std::string& path) {
  const std::string text = read_if_there(path).value_or("");
  int64_t line = 1;
  for (size_t begin = 0, end = text.find('\n'); end != std::string::npos;
       begin = end + 1, end = text.find('\n', begin), ++line) {
    const std::string_view of_row = std::string_view(text).substr(begin, end - begin);
    const json row = json::parse(of_row, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object() || nests_too_deep(of_row) || seal_of(row) != Seal::holds)
      return fmt::format("{}:{}: is damaged; nothing is read from it but by you", path, line);
  }
  return "";
}

// What is wrong with a file of a run, or nothing.
std::string damage_of(const fs::path& path) {
  try {
    if (path.extension() == ".h5") {
      if (is_checkpoint(path)) {
        CheckpointFile(path).check();
      } else {
        read_table(path);
      }
    } else if (path.filename() == "adapter_config.json") {
      check_saved_adapter(path.parent_path());
    } else if (path.extension() == ".safetensors") {
      // With its configuration beside it, it is checked there; without, its role is still in training.
      if (!fs::exists(path.parent_path() / "adapter_config.json")) read_weights(path);
    } else if (path.extension() == ".log") {
      const JournalContent content = read_journal(path);
      if (content.damaged > 0) {
        return fmt::format("{}:{}: {} damaged records from this line on; their samples are run again",
                           path.string(), content.first_damaged_line, content.damaged);
      }
    } else if (path.filename() == "run.json") {
      RunFolder(path.parent_path()).read_run();
      if (seal_of(json::parse(read_if_there(path).value_or(""))) == Seal::none)
        return path.string() + ": its checksum is missing";
    } else if (path.filename() == "metrics.jsonl") {
      return damage_of_metrics(path);
    }
  } catch (const std::exception& error) {
    const std::string what = error.what();
    return what.find(path.filename()) == std::string::npos ? path.string() + ": " + what : what;
  }
  return "";
}

int verify(const std::string& path) {
  if (!fs::exists(RunFolder(path).run_json())) run_of(path);
  int64_t files = 0, damaged = 0;
  for (const auto& entry : fs::recursive_directory_iterator(path)) {
    if (!entry.is_regular_file() || entry.path().extension() == ".partial") continue;
    ++files;
    const std::string damage = damage_of(entry.path());
    if (damage.empty()) continue;
    ++damaged;
    fmt::print("{}\n", damage);
  }
  fmt::print("{} files read, {} damaged\n", files, damaged);
  return damaged == 0 ? 0 : 1;
}

void show_run(const std::string& path) {
  const json run = run_of(path);
  fmt::print("run {}: {}{}\n", path, run.value("state", "unknown"),
             run.value("why", "").empty() ? "" : " (" + run.value("why", "") + ")");
  fmt::print("model {}, fingerprint {}\n", run.value("model", ""), run.value("fingerprint", ""));
  if (!run.contains("options")) return;
  for (const auto& [name, value] : run["options"].items()) fmt::print("  {:<24} {}\n", name, value.dump());
  const RunFolder folder(path);
  const auto iterations = run["options"].value("iterations", int64_t{0});
  for (int64_t k = 1; k <= iterations; ++k) {
    for (const char* stage : {"instructions", "initial", "extended", "sft_generator", "sft_extender"}) {
      const std::string file = folder.stage_file(k, stage);
      if (fs::exists(file)) fmt::print("iteration {} {:<14} {:>8} rows\n", k, stage, read_table(file).rows());
    }
  }
  fmt::print("{}", to_text(length_table(folder, iterations)));
  const RunFolder collected = folder.collected();
  if (const json collection = collected.read_run(); !collection.is_null()) {
    fmt::print("collection {}: {}\n", collected.path(), collection.value("state", "unknown"));
    const bool there = fs::exists(collected.stage_file(0, "final"));
    if (there) fmt::print("{}", final_table(collected));
  }
}

void show_model(const std::string& path) {
  const ModelSource source = open_model(path);
  const ModelConfig& c = source.config;
  fmt::print("model {}: {}, {} parameters, fingerprint {}\n", path,
             c.architecture == Architecture::qwen2 ? "Qwen2" : "Llama", c.parameters(), source.fingerprint);
  fmt::print("{} layers, hidden {}, feed-forward {}, {} heads of {}, {} key-value heads, {} positions\n",
             c.layers, c.hidden, c.ffn, c.heads, c.head_dim, c.key_heads, c.max_positions);
  std::map<std::string, int64_t> types;
  for (const WeightInfo& tensor : source.weights->tensors()) ++types[tensor.storage];
  for (const auto& [type, count] : types) fmt::print("{} tensors of {}\n", count, type);
  fmt::print("tokenizer of {} tokens, embedding of {}, {} chat turns, ends at {}\n",
             source.tokenizer->vocabulary_size(), c.vocabulary,
             source.chat->format().family == ChatFamily::chatml ? "ChatML" : "Llama 3",
             fmt::join(source.end_tokens, ", "));
}

void show_adapter(const std::string& path) {
  std::ifstream file(path + "/adapter_config.json");
  const json config = json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) throw InputError("is damaged", path + "/adapter_config.json", "save it again");
  const auto weights = open_safetensors(path + "/adapter_model.safetensors");
  fmt::print("adapter {}: rank {}, alpha {}, {} tensors\n", path, config.value("r", json()).dump(),
             config.value("lora_alpha", json()).dump(), weights->tensors().size());
}

void show_checkpoint(const std::string& path) {
  const CheckpointFile file(path);
  std::map<std::string, int64_t> parts;  // bytes
  for (const CheckpointPiece& piece : file.index().pieces)
    parts[piece.part] += piece.strip.count * size_of(DType::f32);
  fmt::print("checkpoint {}: {} tensors in {} parts\n", path, file.shapes().size(), parts.size());
  for (const auto& [name, value] : file.index().integers) fmt::print("  {:<24} {}\n", name, value);
  for (const auto& [name, bytes] : parts) fmt::print("  {:<24} {} bytes\n", name, bytes);
  for (const auto& [name, shape] : file.shapes()) fmt::print("  {} {}\n", name, fmt::join(shape, " x "));
}

void show_h5(const std::string& path) {
  if (is_checkpoint(path)) {
    show_checkpoint(path);
    return;
  }
  const Table table = read_table(path);
  fmt::print("dataset {}: {} rows\n", path, table.rows());
  constexpr const char* kinds[] = {"text", "integer", "float", "tokens"};
  for (const auto& [name, column] : table.columns()) fmt::print("  {:<24} {}\n", name, kinds[column.index()]);
  for (const auto& [name, value] : table.attributes) fmt::print("  attribute {:<14} {}\n", name, value);
}

}  // namespace

int inspect_command(const Arguments& arguments) {
  std::string path, state, damaged;
  CommandLine line("inspect",
                   "Says what is in a run folder, a model, an adapter, a dataset or a checkpoint.");
  line.add_positional("PATH", path, "a run folder, model, adapter folder or .h5 file", /*required=*/false);
  line.add("state", state,
           "print the state of this run (running, stopped, done, failed); exit code 0 when done, 75 when "
           "there "
           "is work left")
      .value_name("RUN");
  line.add("verify", damaged, "read every file of this run, list what is damaged; exit code 1 if anything is")
      .value_name("RUN");
  line.example("selflengthen inspect runs/quickstart");
  line.example("selflengthen inspect --state runs/quickstart");
  if (!line.parse(arguments)) return 0;
  if (path.empty() + state.empty() + damaged.empty() != 2)
    throw InputError("one of PATH, --state and --verify is needed", "inspect",
                     "see selflengthen inspect --help");
  if (!state.empty()) return show_state(state);
  if (!damaged.empty()) return verify(damaged);
  if (fs::exists(path + "/run.json")) {
    show_run(path);
  } else if (fs::exists(path + "/adapter_config.json")) {
    show_adapter(path);
  } else if (path.ends_with(".h5")) {
    show_h5(path);
  } else {
    show_model(path);
  }
  return 0;
}

}  // namespace sl
