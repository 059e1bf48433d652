// `collect`: with the Generator of a run's last iteration, further instructions and responses, and the final
// training set of everything that was accepted.
#include <fmt/format.h>

#include <filesystem>

#include "cli/commands.hpp"
#include "cli/method_options.hpp"
#include "cli/run_session.hpp"
#include "lengthen/collect.hpp"

namespace sl {
namespace {

namespace fs = std::filesystem;

struct CollectChoice {
  ModelChoice model;
  EngineChoice engine;
  MethodOptions method;
  CollectOptions collect;
  std::string run;
  double stall_timeout = default_stall_timeout;
  TableLayout tables;
  std::string prompts = input_folder() + "/prompts";
  std::string seeds = input_folder() + "/seeds";
};

// Options of the run that say how much it did, and on which machine: not the collection's.
const std::set<std::string> of_the_run_alone = {
    "config",         "instructions", "device",       "tp",          "collectives",
    "threads",        "storage",      "kv-memory",    "page-tokens", "max-sequences",
    "max-batch-rows", "log-level",    "stall-timeout"};

void add_control_options(CommandLine& line, CollectOptions& collect) {
  LengthControl& control = collect.control;
  line.group("Length control");
  line.add("control-least", control.least,
           "responses of at least so many words get a demand on the length; no demand names less",
           at_least(1));
  line.add("control-most", control.most, "and of fewer than so many; no demand names more", at_least(2));
  line.add("control-unit", control.unit, "numbers are multiples of this", at_least(1));
  line.add("control-coarse-unit", control.coarse_unit, "or of this", at_least(1));
  line.add("control-coarse", control.coarse, "probability of the second unit", between(0, 1));
  line.add("control-about", control.about, "probability of a demand for about so many words", between(0, 1));
  line.add("control-range", control.range, "from so many to so many", between(0, 1));
  line.add("control-above", control.above, "more than so many", between(0, 1));
  line.add("control-below", control.below, "less than so many; the four add up to 1", between(0, 1));
  line.add("control-numerals", control.numerals,
           "probability that a Chinese demand is written in Chinese numerals", between(0, 1));
  line.add("control-attempts", collect.weave.attempts,
           "attempts to weave a demand into an instruction; then it is appended", at_least(1));
  line.add("control-kept", collect.weave.kept,
           "share of an instruction's words that the rewritten one has at the least", between(0, 1));
  line.add("control-tokens", collect.weave.tokens, "longest rewritten instruction, in tokens", at_least(1));
}

// Of a collection that goes on with more instructions the final set is made anew, of all batches.
void raise_instructions(const CollectOptions& wanted, const RunFolder& collected, nlohmann::json& content) {
  nlohmann::json& had = content["options"]["instructions"];
  const auto before = had.get<int64_t>();
  if (before == wanted.instructions) return;
  if (before % wanted.batch != 0) {
    throw InputError(fmt::format("its last batch is one of {} instructions, not {}, and cannot grow",
                                 before % wanted.batch, wanted.batch),
                     "--instructions", fmt::format("leave them at {}", before));
  }
  // Gone before the new number is there: a kill in between leaves a collection that makes the old set again.
  std::error_code error;
  fs::remove(collected.stage_file(0, "final"), error);
  if (error) throw SystemError("unlink", collected.stage_file(0, "final"), error.value());
  had = wanted.instructions;
}

int collect_run(CollectChoice& choice, const FinishedRun& run, const nlohmann::json& run_json,
                const nlohmann::json& options) {
  PromptsByLanguage prompts;
  for (const Language language : {Language::en, Language::zh})
    prompts.emplace(language, Prompts::load(choice.prompts, language));
  const std::vector<std::string> seeds = load_seeds(choice.seeds, choice.method.language);
  const RunFolder collected = run.folder.collected();
  RunSetup setup{.model = choice.model,
                 .engine = choice.engine,
                 .method = choice.method,
                 .prompts = prompts.at(choice.method.language),
                 .stall_timeout = choice.stall_timeout,
                 .folder = collected,
                 .options = options,
                 .may_rise = "instructions",
                 .adapters = {read_lora_shape(run.generator())},
                 .first_adapted = 1,
                 .tables = choice.tables};
  setup.opened = [&](nlohmann::json& content, bool begins, const Grid&) {
    if (content["fingerprint"] != run_json.value("fingerprint", "")) {
      throw InputError(fmt::format("was made with another model ({})", run_json.value("model", "unknown")),
                       choice.run, "give that model");
    }
    if (begins) content["generator_iteration"] = run.iterations;
    const auto before = content.value("generator_iteration", int64_t{0});
    if (before == run.iterations) return raise_instructions(choice.collect, collected, content);
    throw InputError(fmt::format("was collected with the Generator of iteration {}, and {} are finished now",
                                 before, run.iterations),
                     collected.path(), "move it away to collect anew");
  };
  return run_session(
      setup, [&](Session& session) { collect(session, run, choice.collect, prompts, seeds); },
      [&] { fmt::print("{}", final_table(collected)); });
}

// The run's own options are the defaults. run.json as it is.
nlohmann::json take_over_run(CommandLine& line, CollectChoice& choice) {
  const RunFolder folder(choice.run);
  const nlohmann::json run = fs::is_directory(choice.run) ? folder.read_run() : nlohmann::json();
  if (run.is_null() || !run.contains("options")) {
    throw InputError("is not the folder of a run", choice.run,
                     "give the folder that run was told with --out");
  }
  line.take_over(run["options"], of_the_run_alone, folder.run_json());
  choice.method.language = parse_language(run["options"].value("language", "en"));
  return run;
}

}  // namespace

int collect_command(const Arguments& arguments) {
  CollectChoice choice;
  CommandLine line(
      "collect",
      "After a run: its last Generator answers further instructions, in batches; with everything "
      "that the run accepted they become the final training set, with demands on the length in "
      "some of its instructions. All of it is in RUN/collected; the same command continues there.");
  line.group("Collection");
  line.add("run", choice.run, "the run folder").required().value_name("DIR");
  line.add("instructions", choice.collect.instructions, "further instructions", at_least(1));
  line.add("batch", choice.collect.batch, "of them, instructions of a batch", at_least(1));
  line.add_choice("final", choice.collect.responses,
                  {{"all", FinalResponses::all}, {"kept", FinalResponses::kept}},
                  "responses of the final set: all that were accepted, or what length-bias sampling kept");
  add_input_options(line, choice.prompts, choice.seeds);
  line.add("seed", choice.method.seed, "seed of every random draw");
  add_stall_option(line, choice.stall_timeout);
  add_table_options(line, choice.tables);
  add_control_options(line, choice.collect);
  line.group("Model");
  line.add("model", choice.model.model, "Hugging Face folder, or .gguf file").value_name("PATH");
  add_machine_options(line, choice.model);
  add_answer_options(line, choice.method);
  add_sampling_options(line, choice.method.sampling);
  add_engine_options(line, choice.engine);
  line.note(
      "Options that the run has too, those of the machine and of the engine left out, are as the run has "
      "them unless given here.");
  line.example("mpirun -n 2 selflengthen collect --run runs/quickstart --instructions 40 --batch 20");
  line.example("selflengthen export --run runs/quickstart --dataset final --output final.jsonl");
  if (!line.parse(arguments)) return 0;
  const nlohmann::json content = take_over_run(line, choice);
  const FinishedRun run = finished_run(RunFolder(choice.run), content);
  choice.engine = resolve_engine(choice.engine, resolve_device(choice.model.device));
  choice.method.deterministic = choice.model.deterministic;
  choice.method.sampling.validate();
  choice.collect.control.validate();
  nlohmann::json options = line.resolved();
  options["language"] = language_name(choice.method.language);
  choice.method.seed = collection_seed(choice.method.seed, run.iterations);
  return collect_run(choice, run, content, options);
}

}  // namespace sl
