// `run`: the whole method, resumable. Every constant of METHOD.md is an option here, with its published
// default.
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <set>

#include "cli/commands.hpp"
#include "cli/launch.hpp"
#include "core/log.hpp"
#include "lengthen/iterate.hpp"

namespace sl {
namespace {

namespace fs = std::filesystem;

// The project's prompts and seeds: in the working directory, with an installed program, or in the tree that
// the program was built in.
std::string input_folder() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const fs::path& folder :
       {fs::path("input"), program / "../share/selflengthen/input", program / "../../../input"}) {
    if (fs::is_directory(folder / "prompts", error)) return folder.lexically_normal().string();
  }
  return "input";
}

struct RunChoice {
  ModelChoice model;
  EngineChoice engine;
  TrainingChoice training;
  MethodOptions method;
  std::string out;
  double stall_timeout = default_stall_timeout;
  std::string prompts = input_folder() + "/prompts";
  std::string seeds = input_folder() + "/seeds";
};

void add_method_options(CommandLine& line, MethodOptions& method) {
  line.group("The method");
  line.add_choice("language", method.language, {{"en", Language::en}, {"zh", Language::zh}},
                  "language of prompts, seeds and acceptance");
  line.add("seed", method.seed, "seed of every random draw");
  line.add("iterations", method.iterations, "macro-iterations", at_least(1));
  line.group("Instructions (stage 0)");
  line.add("instructions", method.instructions, "instructions an iteration", at_least(1));
  line.add_choice("instruction-pool", method.instruction_pool,
                  {{"seeds", InstructionPool::seeds}, {"growing", InstructionPool::growing}},
                  "what new instructions are drawn from: the seeds, or also those accepted so far");
  line.add("instruction-round", method.instruction_round,
           "growing: slots after which the pool is the seeds again", at_least(1));
  line.add("instruction-wave", method.instruction_wave,
           "growing: slots that draw from the same pool, side by side", at_least(1));
  line.add("instruction-attempts", method.instruction_attempts, "attempts a slot", at_least(1));
  line.add("instruction-tokens", method.instruction_tokens, "longest new instruction, in tokens",
           at_least(1));
  line.add("instruction-min-words", method.instruction_min_words, "an instruction has more words than this",
           at_least(0));
  line.add("instruction-max-words", method.instruction_max_words, "an instruction has fewer words than this",
           at_least(1));
  line.add_choice(
      "judge", method.judge, {{"exact", Judge::exact}, {"choice", Judge::choice}},
      "how the model judges an instruction: by a bare yes, or by the likelier of yes and no (for models too "
      "small to answer in one word)");
  line.group("Responses (stages 1 and 2)");
  line.add("responses", method.responses, "initial responses an instruction", at_least(1));
  line.add("response-attempts", method.response_attempts, "attempts an initial response", at_least(1));
  line.add("extensions", method.extensions, "extended responses an initial response", at_least(1));
  line.add("extension-attempts", method.extension_attempts, "attempts an extended response", at_least(1));
  line.add("micro-iterations", method.micro_iterations, "extensions of an extension inside an attempt",
           at_least(1));
  line.add("extension-ratio", method.extension_ratio,
           "an extended response has more than this times the words", at_least(0));
  line.add("straggler-cut", method.straggler_cut,
           "a stage is over when this share of its samples is; 1 waits for all", above_to(0, 1));
  line.add("line-keep", method.line_keep, "probability that random line removal keeps a line (stage 3)",
           between(0, 1));
}

// Options that may differ when a run continues: where and how fast it runs, not what it computes.
const std::set<std::string, std::less<>> free_to_change = {"out",
                                                           "config",
                                                           "model",
                                                           "device",
                                                           "tp",
                                                           "collectives",
                                                           "threads",
                                                           "storage",
                                                           "kv-memory",
                                                           "page-tokens",
                                                           "max-sequences",
                                                           "max-batch-rows",
                                                           "log-level",
                                                           "iterations",
                                                           "stall-timeout",
                                                           "checkpoint-every",
                                                           "recompute",
                                                           "pass-tokens",
                                                           "activation-memory",
                                                           "prompts",
                                                           "seeds",
                                                           "adapter"};

void check_same_run(const RunFolder& folder, const nlohmann::json& before, const nlohmann::json& options,
                    const ModelSource& source) {
  if (before.value("fingerprint", "") != source.fingerprint) {
    throw InputError(fmt::format("was begun with another model ({})", before.value("model", "unknown")),
                     folder.path(), "give that model, or another --out");
  }
  for (const auto& [name, value] : options.items()) {
    if (free_to_change.contains(name) || !before.contains("options") || !before["options"].contains(name))
      continue;
    if (before["options"][name] != value) {
      throw InputError(
          fmt::format("was begun with --{} {}, not {}", name, before["options"][name].dump(), value.dump()),
          folder.path(), "give the same value, or another --out");
    }
  }
}

// What rank 0 does before the others may touch the folder. Leaves run.json saying "running".
std::unique_ptr<RunLock> open_run(const RunFolder& folder, const nlohmann::json& options, RunChoice& choice,
                                  const ModelSource& source, const Grid& grid) {
  std::error_code error;
  fs::create_directories(folder.path(), error);
  if (error) throw SystemError("mkdir", folder.path(), error.value());
  auto lock = std::make_unique<RunLock>(folder);
  nlohmann::json run = folder.read_run();
  if (run.is_null()) {
    run = {{"version", SELFLENGTHEN_VERSION},
           {"model", source.path},
           {"fingerprint", source.fingerprint},
           {"options", options}};
    // One sequence a replica and step, also when the run goes on with more replicas or fewer.
    const int64_t batch = choice.method.training.batch_sequences;
    run["batch_sequences"] = batch > 0 ? batch : grid.dp;
  } else {
    check_same_run(folder, run, options, source);
    run["options"]["iterations"] = options["iterations"];
  }
  choice.method.training.batch_sequences = run.value("batch_sequences", int64_t{1});
  run["state"] = state_name(RunState::running);
  run["why"] = "";
  run["grid"] = {{"dp", grid.dp}, {"tp", grid.tp}};
  folder.write_run(run);
  return lock;
}

// Any rank may be the only one that knows, and several may know at once; what went wrong first is what
// counts.
void note_failure(const RunFolder& folder, const char* why) {
  try {
    folder.set_state(RunState::failed, why);
  } catch (const std::exception& error) {
    spdlog::debug("{}", error.what());
  }
}

int run_method(RunChoice& choice, const nlohmann::json& options) {
  const Prompts prompts = Prompts::load(choice.prompts, choice.method.language);
  const std::vector<std::string> seeds = load_seeds(choice.seeds, choice.method.language);
  const RunFolder folder(choice.out);
  ModelSource source = open_model(choice.model.model);

  Ranks ranks = start_ranks(choice.model);
  catch_stop_signals();
  std::unique_ptr<RunLock> lock;
  if (ranks.first()) lock = open_run(folder, options, choice, source, ranks.groups.grid);
  ranks.groups.world->broadcast(std::as_writable_bytes(std::span(&choice.method.training.batch_sequences, 1)),
                                0);

  const auto watchdog = watch_over(ranks, folder, choice.stall_timeout,
                                   [&](const std::string& line) { note_failure(folder, line.c_str()); });

  const LoraShape& lora = choice.method.training.lora;  // of both roles
  const std::unique_ptr<LoadedModel> model =
      load_model(std::move(source), ranks, ServedAdapters::room_for(std::vector{lora, lora}));
  const EngineLimits limits =
      engine_limits(choice.engine, model->transformer(), model->config().max_positions);
  log_memory();
  SharedCounters counters(ranks.session, 4);
  Progress progress(ranks.first(), ranks.groups.grid.dp);
  RunFolder shared_folder = folder;
  Session session{choice.method, limits, *model, prompts, ranks.groups, counters, shared_folder, progress};
  try {
    run_iterations(session, seeds);
  } catch (const Stopped&) {
    progress.finish();
    if (ranks.first()) {
      folder.set_state(RunState::stopped, "asked by a signal");
      spdlog::info("stopped at a signal; the same command continues {}", folder.path());
    }
    return 0;
  } catch (const std::exception& error) {
    note_failure(folder, error.what());
    throw;
  }
  if (ranks.first()) {
    folder.set_state(RunState::done, "");
    fmt::print("{}", to_text(length_table(folder, choice.method.iterations)));
  }
  return 0;
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
  line.add("prompts", choice.prompts, "folder of the prompts").value_name("DIR");
  line.add("seeds", choice.seeds, "folder of the seed instructions").value_name("DIR");
  add_stall_option(line, choice.stall_timeout);
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
  if (choice.method.training.finetune == Finetune::full) {
    throw InputError("the roles of a run are adapters", "--finetune full",
                     "use --finetune lora (full: see `train`)");
  }
  return run_method(choice, line.resolved());
}

}  // namespace sl
