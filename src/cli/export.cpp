// export: a dataset of a run as JSON lines, or a model with its adapter merged as a Hugging Face folder.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "cli/commands.hpp"
#include "cli/launch.hpp"
#include "cli/rows.hpp"
#include "core/log.hpp"
#include "io/dataset.hpp"
#include "io/durable.hpp"
#include "io/run_folder.hpp"
#include "model/export.hpp"

namespace sl {
namespace {

namespace fs = std::filesystem;

struct ExportChoice {
  ModelChoice model;
  std::string run, dataset, output;
  int64_t iteration = 1;
  std::string storage = "F32";
};

int export_dataset(const ExportChoice& choice) {
  RowOutput::check(choice.output);
  const RunFolder folder(choice.run);
  if (!fs::is_directory(choice.run) || folder.read_run().is_null())
    throw InputError("is not the folder of a run", choice.run,
                     "give the folder that run was told with --out");
  const bool final_set = choice.dataset == "final";
  const std::string path = final_set ? folder.collected().stage_file(0, choice.dataset)
                                     : folder.stage_file(choice.iteration, choice.dataset);
  if (!fs::exists(path)) {
    throw InputError("does not exist", path,
                     final_set ? "let selflengthen collect make it first"
                               : "that stage is not finished, or choose another --iteration or --dataset");
  }
  const Table table = read_table(path);
  RowOutput output(choice.output);
  for (size_t i = 0; i < static_cast<size_t>(table.rows()); ++i) {
    nlohmann::json row = nlohmann::json::object();
    for (const auto& [name, column] : table.columns()) {
      // The final set's response is called as `train` reads it.
      nlohmann::json& cell = row[final_set && name == "response" ? "output" : name];
      std::visit([&](const auto& values) { cell = values[i]; }, column);
    }
    output.write(row);
  }
  output.close();
  return 0;
}

int export_model(ExportChoice& choice) {
  const std::string output = fs::path(choice.output + "/").parent_path().string();
  if (fs::exists(output)) throw InputError("exists already", output, "choose another --output");
  const std::string partial = output + ".partial";
  choice.model.device = on_host(choice.model.device, "export");
  Ranks ranks = start_ranks(choice.model);
  const auto model = load_model(open_model(choice.model.model), ranks);
  if (const std::optional<Adapter> adapter = load_chosen_adapter(choice.model, *model))
    merge(model->parameters(), *adapter, 1.0F);
  const bool writer = ranks.groups.place.replica == 0;
  try {
    write_model_files(partial, model->source(), model->parameters(), choice.storage, writer,
                      *ranks.groups.tensor);
  } catch (...) {
    std::error_code ignored;
    if (ranks.first()) fs::remove_all(partial, ignored);
    throw;
  }
  ranks.groups.world->barrier();
  if (ranks.first()) rename_durably(partial, output);
  return 0;
}

}  // namespace

int export_command(const Arguments& arguments) {
  ExportChoice choice;
  CommandLine line(
      "export",
      "Writes a dataset of a run as JSON lines (--run), or a model, with an adapter merged into its "
      "weights, as a Hugging Face folder (--model).");
  line.group("Dataset of a run");
  line.add("run", choice.run, "the run folder").value_name("DIR");
  line.add_choice("dataset", choice.dataset,
                  {{"", ""},
                   {"instructions", "instructions"},
                   {"initial", "initial"},
                   {"extended", "extended"},
                   {"sft_generator", "sft_generator"},
                   {"sft_extender", "sft_extender"},
                   {"final", "final"}},
                  "which; final: of the collection, as rows for train");
  line.add("iteration", choice.iteration, "of which macro-iteration", at_least(1));
  line.group("Merged model");
  line.add("model", choice.model.model, "Hugging Face folder, or .gguf file").value_name("PATH");
  line.add("adapter", choice.model.adapter, "LoRA adapter in PEFT's format").value_name("DIR");
  line.add_choice("dtype", choice.storage, {{"f32", "F32"}, {"bf16", "BF16"}}, "numbers of the weights");
  line.add("tp", choice.model.tp, "ranks that share the model", at_least(1));
  line.group("Output");
  line.add("output", choice.output, "file of JSON lines (- is standard output), or folder of the model")
      .value_name("PATH")
      .required();
  line.example("selflengthen export --run RUN --dataset extended --iteration 2 --output extended.jsonl");
  line.example("selflengthen export --model MODEL --adapter RUN/iter_02/generator --output merged");
  if (!line.parse(arguments)) return 0;
  if (choice.run.empty() == choice.model.model.empty())
    throw InputError("one of --run and --model is needed", "export", "see selflengthen export --help");
  if (choice.run.empty()) return export_model(choice);
  if (choice.dataset.empty())
    throw InputError("--dataset is missing", "export", "see selflengthen export --help");
  return export_dataset(choice);
}

}  // namespace sl
