// bench train: whole training steps on random weights and packed random tokens.
#include <algorithm>
#include <optional>

#include "cli/bench.hpp"
#include "cli/commands.hpp"
#include "core/rng.hpp"
#include "kernels/ops.hpp"
#include "train/trainer.hpp"

namespace sl {
namespace {

using nlohmann::json;

std::vector<TrainingRow> random_rows(int64_t tokens, int64_t sequence, int64_t vocabulary) {
  std::vector<TrainingRow> rows;
  Random random({.seed = 3});
  for (int64_t begin = 0; begin < tokens; begin += sequence) {
    TrainingRow row;
    // One token more than rows: each row predicts the next token.
    for (int64_t i = 0; i <= std::min(sequence, tokens - begin); ++i) {
      row.tokens.push_back(static_cast<int32_t>(random.below(vocabulary)));
      row.mask.push_back(1);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

json train(const Context& context, const ModelConfig& config, const BenchChoice& choice) {
  const Ceiling ceiling = measure_ceiling(context);
  RandomModel model(context, config);
  const Transformer& transformer = model.transformer();
  const bool full = choice.finetune == Finetune::full;
  const int64_t sequence = choice.sequence > 0 ? std::min(choice.sequence, choice.context) : choice.context;
  std::optional<Adapter> adapter;
  std::optional<Parameters> exact;
  Trainable trained;
  if (!full) {
    adapter.emplace(config, *transformer.shard, LoraShape{}, context.device, "adapter");
    initialise(*adapter, 1);
    trained.adapter = &*adapter;
  } else if (context.storage == DType::f32) {
    trained.parameters = &model.weights();
  } else {
    exact.emplace(config, *transformer.shard, context.device, "trained weights");
    for (size_t i = 0; i < exact->tensors().size(); ++i)
      run(context, Copy{model.weights().tensors()[i].local, exact->tensors()[i].local});
    trained.parameters = &*exact;
  }
  std::vector<TrainingRow> rows = random_rows(choice.context, sequence, config.vocabulary);
  constexpr int64_t warm_up = 2;
  TrainingOptions options;
  options.finetune = choice.finetune;
  options.epochs = choice.repeats + warm_up;
  options.batch_sequences = static_cast<int64_t>(rows.size());
  options.pass_tokens = choice.context;
  options.cutoff = sequence + 1;
  options.recompute = choice.recompute;
  Trainer trainer(transformer, trained, std::move(rows), options, model.alone());
  log_memory();
  std::vector<StepRecord> steps;
  while (trainer.step()) steps.push_back(trainer.last());
  steps.erase(steps.begin(), steps.begin() + warm_up);
  const auto middle = steps.begin() + static_cast<int64_t>(steps.size() / 2);
  std::nth_element(steps.begin(), middle, steps.end(), [](const StepRecord& a, const StepRecord& b) {
    return a.tokens_per_second < b.tokens_per_second;
  });

  json line = head_of_line(context, "train", choice);
  line["finetune"] = full ? "full" : "lora";
  line["context"] = choice.context;
  line["sequence"] = sequence;
  line["loss"] = trainer.last().loss;
  line["milliseconds"] = 1e3 * static_cast<double>(middle->tokens) / middle->tokens_per_second;
  line["tokens_per_second"] = middle->tokens_per_second;
  line["tflops"] = middle->tflops;
  line["layers"] = config.layers;
  line["kept_layers"] = trainer.pass().kept_layers();
  line["activation_gib"] = static_cast<double>(trainer.pass().bytes()) / (int64_t{1} << 30);
  line["ceiling"] = ceiling.to_json();
  line["ratio"] = 1e12 * middle->tflops / ceiling.flops_per_second;
  return line;
}

}  // namespace

int bench_train_command(const Arguments& arguments) {
  return run_bench(
      "train",
      "A training step of packed sequences: forward, backward and update. Operations are counted once, also "
      "where activations are computed again.",
      "--shape qwen2-7b --context 8192", arguments,
      [](CommandLine& line, BenchChoice& choice) {
        line.add("context", choice.context, "tokens of a step", at_least(1));
        line.add("sequence", choice.sequence, "tokens of each sequence in it; 0: one sequence", at_least(0));
        line.add_choice("finetune", choice.finetune, {{"lora", Finetune::lora}, {"full", Finetune::full}},
                        "an adapter of rank 8, or all weights");
        line.add_choice("recompute", choice.recompute,
                        {{"auto", Recompute::automatic}, {"all", Recompute::all}, {"none", Recompute::none}},
                        "layers that compute their activations a second time; auto: as memory needs");
      },
      train);
}

}  // namespace sl
