// `run`: the whole method, resumable. Every constant of METHOD.md is an option here, with its published
// default.
#include <fmt/format.h>

#include "cli/commands.hpp"
#include "cli/method_options.hpp"
#include "cli/run_session.hpp"
#include "lengthen/iterate.hpp"

namespace sl {
namespace {

struct RunChoice {
  ModelChoice model;
  EngineChoice engine;
  TrainingChoice training;
  MethodOptions method;
  std::string out;
  double stall_timeout = default_stall_timeout;
  TableLayout tables;
  std::string prompts = input_folder() + "/prompts";
  std::string seeds = input_folder() + "/seeds";
};

int run_method(RunChoice& choice, const nlohmann::json& options) {
  const Prompts prompts = Prompts::load(choice.prompts, choice.method.language);
  const std::vector<std::string> seeds = load_seeds(choice.seeds, choice.method.language);
  const RunFolder folder(choice.out);
  int64_t& batch = choice.method.training.batch_sequences;
  const LoraShape& lora = choice.method.training.lora;  // of both roles
  RunSetup setup{.model = choice.model,
                 .engine = choice.engine,
                 .method = choice.method,
                 .prompts = prompts,
                 .stall_timeout = choice.stall_timeout,
                 .folder = folder,
                 .options = options,
                 .adapters = {lora, lora},
                 .tables = choice.tables};
  setup.opened = [&](nlohmann::json& run, bool begins, const Grid& grid) {
    // One sequence a replica and step, also when the run goes on with more replicas or fewer.
    if (begins) run["batch_sequences"] = batch > 0 ? batch : grid.dp;
    run["options"]["iterations"] = options["iterations"];
    batch = run.value("batch_sequences", int64_t{1});
  };
  return run_session(
      setup,
      [&](Session& session) {
        session.groups.world->broadcast(std::as_writable_bytes(std::span(&batch, 1)), 0);
        run_iterations(session, seeds);
      },
      [&] { fmt::print("{}", to_text(length_table(folder, choice.method.iterations))); });
}

}  // namespace

int run_command(const Arguments& arguments) {
  RunChoice choice;
  CommandLine line(
      "run",
      "Runs Self-Lengthen: instructions, initial responses, two-stage extensions, training of both roles, "
      "again and again. Everything finished is in the run folder; the same command continues there, also "
      "on another number of ranks.");
  line.group("Run");
  line.add("out", choice.out, "the run folder").required().value_name("DIR");
  add_input_options(line, choice.prompts, choice.seeds);
  add_stall_option(line, choice.stall_timeout);
  add_table_options(line, choice.tables);
  add_model_options(line, choice.model, /*with_adapter=*/false);
  add_method_options(line, choice.method);
  add_sampling_options(line, choice.method.sampling);
  add_engine_options(line, choice.engine);
  add_training_options(line, choice.method.training, choice.training);
  line.example("mpirun -n 2 selflengthen run --config input/quickstart.cfg --out runs/quickstart");
  line.note(
      "SIGTERM, SIGINT and SIGUSR1 save everything and end with exit code 0; `inspect --state DIR` says "
      "whether "
      "there is work left.");
  if (!line.parse(arguments)) return 0;
  const Device device = resolve_device(choice.model.device);
  choice.engine = resolve_engine(choice.engine, device);
  // Training finds the memory of the pages free, and a little more; on a GPU it sees itself what is free.
  if (choice.training.activation_memory == 0 && device != Device::cuda)
    choice.training.activation_memory = choice.engine.kv_memory + 256;
  apply(choice.training, choice.method.training);
  choice.method.deterministic = choice.model.deterministic;
  choice.method.sampling.validate();
  if (choice.method.instruction_max_words - choice.method.instruction_min_words < 2) {
    throw InputError(fmt::format("no number of words is above {} and below {}",
                                 choice.method.instruction_min_words, choice.method.instruction_max_words),
                     "--instruction-min-words, --instruction-max-words", "leave numbers between them");
  }
  if (choice.method.training.finetune == Finetune::full) {
    throw InputError("the roles of a run are adapters", "--finetune full",
                     "use --finetune lora (full: see `train`)");
  }
  return run_method(choice, line.resolved());
}

}  // namespace sl
