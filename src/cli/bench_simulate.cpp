// bench simulate: a stage of rollouts on any number of replicas, from measured steps.
#include <fmt/format.h>

#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/command_line.hpp"
#include "cli/commands.hpp"
#include "io/dataset.hpp"
#include "io/json_lines.hpp"
#include "io/run_folder.hpp"
#include "lengthen/simulate.hpp"
#include "lengthen/simulate_input.hpp"

namespace sl {
namespace {

using nlohmann::json;

struct SimulateChoice {
  std::string run, stage = "initial", lengths = "lognormal:1000,0.5", steps;
  std::string replicas = "1,2,4,8,16,32,64,128,256,512,1024";
  int64_t iteration = 1, count = 10000;
  bool weak = false;
  uint64_t seed = 1;
  LengthDistribution drawn;
  SimulationOptions options{.straggler_cut = 0.95};
  // qwen2-7b on one H100 in bf16, by least squares: doc/scaling.md.
  double step_ms = 5.38, sequence_us = 8.47, context_ns = 19.7, prompt_us = 23.9;
};

std::vector<int> parse_list(const std::string& text, const std::string& where) {
  std::vector<int> numbers;
  for (size_t begin = 0, end = 0; begin <= text.size(); begin = end + 1) {
    end = std::min(text.find(',', begin), text.size());
    int number = 0;
    const auto read = std::from_chars(text.data() + begin, text.data() + end, number);
    if (read.ec != std::errc() || read.ptr != text.data() + end || number < 1 || number > 65536)
      throw InputError(fmt::format("'{}' is no list of replicas", text), where, "give numbers like 1,2,4,8");
    numbers.push_back(number);
  }
  return numbers;
}

// What lines of bench decode, prefill and rollout (of a steady state) say; others are passed over.
StepTime read_steps(const std::string& path, double per_prompt_token) {
  std::vector<MeasuredStep> steps;
  const std::vector<JsonRow> rows = read_json_lines(path);
  const auto number = [&](const JsonRow& row, const char* key) {
    if (!row.value.contains(key) || !row.value[key].is_number() || !(row.value[key].get<double>() > 0.0)) {
      throw InputError(fmt::format("has no positive number '{}'", key), fmt::format("{}:{}", path, row.line),
                       "give lines of bench decode, prefill and rollout as they are");
    }
    return row.value[key].get<double>();
  };
  for (const JsonRow& row : rows) {
    if (row.value.value("bench", json()) == "prefill")
      per_prompt_token = 1e-3 * number(row, "milliseconds") / number(row, "context");
  }
  for (const JsonRow& row : rows) {
    const json bench = row.value.value("bench", json());
    if (bench == "decode") {
      steps.push_back({static_cast<int64_t>(number(row, "batch")),
                       static_cast<int64_t>(number(row, "context")), 1e-3 * number(row, "milliseconds")});
    } else if (bench == "rollout" && !row.value.contains("count")) {
      // Sequences are half done on average; prompts of those that begin are not part of the step.
      const double count = number(row, "steps"),
                   prompts = row.value.value("prompt_tokens_computed", 0.0) / count;
      steps.push_back({static_cast<int64_t>(number(row, "sequences")),
                       static_cast<int64_t>(number(row, "input_tokens") + number(row, "output_tokens") / 2.0),
                       std::max(0.0, number(row, "seconds") / count - per_prompt_token * prompts)});
    }
  }
  return fit_step_time(steps, per_prompt_token, path);
}

StepTime step_time_of(const SimulateChoice& choice) {
  if (!choice.steps.empty()) return read_steps(choice.steps, 1e-6 * choice.prompt_us);
  const int64_t many = 1000;
  return {.points = {{0, 1e-3 * choice.step_ms},
                     {many, 1e-3 * choice.step_ms + 1e-6 * choice.sequence_us * static_cast<double>(many)}},
          .per_context_token = 1e-9 * choice.context_ns,
          .per_prompt_token = 1e-6 * choice.prompt_us};
}

std::vector<SimulatedSample> samples_of_run(const SimulateChoice& choice) {
  const RunFolder folder(choice.run);
  if (folder.read_run().is_null())
    throw InputError("is not the folder of a run", choice.run,
                     "give the folder that run was told with --out");
  const std::string path = folder.stage_file(choice.iteration, choice.stage);
  if (!std::filesystem::exists(path))
    throw InputError("this stage of the run is not finished", path, "give another --iteration or --stage");
  return samples_of_stage(read_table(path), choice.drawn.prompt, path);
}

json to_json(const Simulation& simulation, const Simulation& alone) {
  int64_t tokens = 0;
  double most = 0.0;
  json idle;
  const auto replicas = static_cast<int>(simulation.replicas.size());
  for (int replica = 0; replica < replicas; ++replica) {
    tokens += simulation.replicas[static_cast<size_t>(replica)].tokens;
    most = std::max(most, simulation.idle_share(replica));
    if (replicas <= 16) idle.push_back(simulation.idle_share(replica));
  }
  json figures = {{"seconds", simulation.seconds},
                  {"tokens_per_second", static_cast<double>(tokens) / simulation.seconds},
                  {"idle_share", simulation.mean_idle_share()},
                  {"idle_share_most", most},
                  {"efficiency", simulation.samples_per_second() / (replicas * alone.samples_per_second())}};
  if (!idle.is_null()) figures["idle_share_of_replicas"] = idle;
  return figures;
}

}  // namespace

int bench_simulate_command(const Arguments& arguments) {
  SimulateChoice choice;
  CommandLine line(
      "bench simulate",
      "A stage of rollouts on any number of replicas, on paper: the hand-out of samples, the batching of the "
      "engine, attempts and the straggler cut are those of a run; what a step takes is measured before. "
      "Needs "
      "no model and no ranks. A line for each number of replicas: samples handed out as a run does it "
      "(dynamic) and split beforehand (static), efficiency against one replica.");
  line.group("Samples");
  line.add("run", choice.run, "take them from a finished stage of this run folder").value_name("FOLDER");
  line.add("iteration", choice.iteration, "of the run", at_least(1));
  line.add_choice("stage", choice.stage,
                  {{"instructions", "instructions"}, {"initial", "initial"}, {"extended", "extended"}},
                  "of the run");
  line.add("lengths", choice.lengths,
           "without --run: tokens of an attempt, their mean and the standard deviation of their logarithm")
      .value_name("lognormal:MEAN,SIGMA");
  line.add("longest", choice.drawn.longest, "tokens of an attempt, at most", at_least(1));
  line.add("count", choice.count, "samples", at_least(1));
  line.add("acceptance", choice.drawn.acceptance, "probability that an attempt is accepted", above_to(0, 1));
  line.add("attempts", choice.drawn.attempts, "of a sample, at most", at_least(1));
  line.add("prompt-tokens", choice.drawn.prompt, "that are computed for a sample", at_least(1));
  line.add("seed", choice.seed, "of the lengths");
  line.add("weak", choice.weak, "every replica has so many samples; without it they share them");
  line.group("Replicas");
  line.add("replicas", choice.replicas, "how many").value_name("N,N,...");
  line.add("max-sequences", choice.options.max_sequences, "of a replica at the same time", at_least(1));
  line.add("max-batch-rows", choice.options.max_batch_rows, "tokens of a step, prompts included",
           at_least(1));
  line.add("straggler-cut", choice.options.straggler_cut, "the stage is over when this share is done",
           above_to(0, 1));
  line.group("Time of a step (the defaults: qwen2-7b on one H100)");
  line.add("steps", choice.steps,
           "lines of bench decode or bench rollout --seconds, two contexts of one number of sequences at "
           "least, and of bench prefill; instead of the options below")
      .value_name("FILE");
  line.add("step-ms", choice.step_ms, "milliseconds, whatever it holds", at_least(0));
  line.add("sequence-us", choice.sequence_us, "microseconds of each decoding sequence", at_least(0));
  line.add("context-ns", choice.context_ns, "nanoseconds of each token that they attend to", at_least(0));
  line.add("prompt-us", choice.prompt_us, "microseconds of each token of a prompt", at_least(0));
  line.example("selflengthen bench simulate --lengths lognormal:1000,0.5 --count 10000");
  line.example("selflengthen bench simulate --run runs/mine --stage extended --replicas 1,4,16");
  if (!line.parse(arguments)) return 0;
  if (choice.options.max_batch_rows <= choice.options.max_sequences)
    throw InputError("leaves no room for prompts", "--max-batch-rows", "give more than --max-sequences");
  const std::vector<int> counts = parse_list(choice.replicas, "--replicas");
  const LengthDistribution parsed = parse_lengths(choice.lengths, "--lengths");
  choice.drawn.mean = parsed.mean;
  choice.drawn.sigma = parsed.sigma;
  const StepTime time = step_time_of(choice);

  const std::vector<SimulatedSample> of_run =
      choice.run.empty() ? std::vector<SimulatedSample>() : samples_of_run(choice);
  const auto samples_for = [&](int replicas) {
    const int64_t times = choice.weak ? replicas : 1;
    if (choice.run.empty()) return draw_samples(choice.drawn, times * choice.count, choice.seed);
    std::vector<SimulatedSample> samples;
    for (int64_t i = 0; i < times; ++i) samples.insert(samples.end(), of_run.begin(), of_run.end());
    return samples;
  };
  SimulationOptions options = choice.options;
  options.replicas = 1;
  options.hand_out = HandOut::dynamic;
  const Simulation alone = simulate_stage(samples_for(1), time, options);
  if (!(alone.seconds > 0.0))
    throw InputError("the steps take no time", "--step-ms", "give what was measured");
  for (const int replicas : counts) {
    const std::vector<SimulatedSample> samples = samples_for(replicas);
    json row = {{"bench", "simulate"},
                {"replicas", replicas},
                {"scaling", choice.weak ? "weak" : "strong"},
                {"samples", samples.size()},
                {"lengths", choice.run.empty() ? choice.lengths : choice.run + ", " + choice.stage},
                {"max_sequences", options.max_sequences},
                {"straggler_cut", options.straggler_cut}};
    options.replicas = replicas;
    for (const auto& [name, hand_out] :
         {std::pair{"dynamic", HandOut::dynamic}, {"static", HandOut::fixed}}) {
      options.hand_out = hand_out;
      row[name] = to_json(simulate_stage(samples, time, options), alone);
    }
    fmt::print("{}\n", row.dump());
  }
  return 0;
}

}  // namespace sl
