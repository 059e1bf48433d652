// bench train: whole training steps on random weights and packed random tokens.
#include <algorithm>
#include <memory>
#include <optional>
#include <span>

#include "cli/bench.hpp"
#include "cli/commands.hpp"
#include "core/rng.hpp"
#include "dist/nccl.hpp"
#include "kernels/device.hpp"
#include "kernels/ops.hpp"
#include "train/trainer.hpp"

namespace sl {
namespace {

using nlohmann::json;

void add_random_rows(std::vector<TrainingRow>& rows, int replica, int64_t tokens, int64_t sequence,
                     int64_t vocabulary) {
  Random random({.seed = 3, .sample = replica});
  for (int64_t begin = 0; begin < tokens; begin += sequence) {
    TrainingRow row;
    // One token more than rows: each row predicts the next token.
    for (int64_t i = 0; i <= std::min(sequence, tokens - begin); ++i) {
      row.tokens.push_back(static_cast<int32_t>(random.below(vocabulary)));
      row.mask.push_back(1);
    }
    rows.push_back(std::move(row));
  }
}

int64_t sequence_of(const BenchChoice& choice) {
  return choice.sequence > 0 ? std::min(choice.sequence, choice.context) : choice.context;
}

struct TrainingFigures {
  StepRecord middle;  // of median rate
  double loss = 0.0;
  int64_t kept_layers = 0, activation_bytes = 0;
};

// Steps in which every replica has --context tokens. Collective over the replica and `data_parallel`.
TrainingFigures train_steps(const Transformer& transformer, const Trainable& trained,
                            const BenchChoice& choice, Communicator& data_parallel) {
  std::vector<TrainingRow> rows;
  for (int replica = 0; replica < data_parallel.size(); ++replica)
    add_random_rows(rows, replica, choice.context, sequence_of(choice), transformer.config->vocabulary);
  constexpr int64_t warm_up = 2;
  TrainingOptions options;
  options.finetune = choice.finetune;
  options.epochs = choice.repeats + warm_up;
  options.batch_sequences = static_cast<int64_t>(rows.size());
  options.pass_tokens = choice.context;
  options.cutoff = sequence_of(choice) + 1;
  options.recompute = choice.recompute;
  options.shuffle = false;  // each replica keeps its own
  Trainer trainer(transformer, trained, std::move(rows), options, data_parallel);
  log_memory();
  std::vector<StepRecord> steps;
  while (trainer.step()) steps.push_back(trainer.last());
  steps.erase(steps.begin(), steps.begin() + warm_up);
  const auto middle = steps.begin() + static_cast<int64_t>(steps.size() / 2);
  std::nth_element(steps.begin(), middle, steps.end(), [](const StepRecord& a, const StepRecord& b) {
    return a.tokens_per_second < b.tokens_per_second;
  });
  return {.middle = *middle,
          .loss = trainer.last().loss,
          .kept_layers = trainer.pass().kept_layers(),
          .activation_bytes = trainer.pass().bytes()};
}

json train(const Ranks& ranks, const ModelConfig& config, const BenchChoice& choice) {
  const Context& context = ranks.context;
  const int dp = ranks.groups.grid.dp;
  const Ceiling ceiling = measure_ceiling(context);
  const bool full = choice.finetune == Finetune::full;
  RandomModel model(ranks, config, full ? 0 : 1);  // with room for an adapter
  const Transformer& transformer = model.transformer();
  std::optional<Adapter> adapter;
  std::unique_ptr<Parameters> exact;
  Trainable trained;
  if (!full) {
    adapter.emplace(config, *transformer.shard, LoraShape{}, context.device, "adapter");
    initialise(*adapter, 1);
    trained.adapter = &*adapter;
  } else if (context.storage == DType::f32) {
    trained.parameters = &model.weights();
  }
  const bool exact_apart = full && context.storage != DType::f32;
  const auto place_exact = [&](Device place) {
    exact.reset();  // before the next takes its memory
    exact = std::make_unique<Parameters>(config, *transformer.shard, place, "trained weights");
    for (size_t i = 0; i < exact->tensors().size(); ++i)
      upload_floats(exact->tensors()[i].local, download_floats(model.weights().tensors()[i].local));
    trained.parameters = &*exact;
  };
  std::optional<TrainingFigures> alone;
  // One replica while the others wait, then all: what a replica loses by not being alone. With all weights
  // trained it then holds the whole state (exact weights, gradient, two moments), where that leaves room.
  const double whole_state = 16.0 * static_cast<double>(config.parameters()) / transformer.shard->tp;
  int64_t no_room =
      exact_apart && whole_state > 0.8 * static_cast<double>(free_device_bytes(context)) ? 1 : 0;
  ranks.groups.tensor->all_reduce_max(std::span(&no_room, 1));
  if (dp > 1) {
    const auto nobody = make_local_communicator();
    if (ranks.groups.place.replica == 0 && no_room == 0) {
      if (exact_apart) place_exact(context.device);
      alone = train_steps(transformer, trained, choice, *nobody);
    }
    ranks.groups.world->barrier();
  }
  // Replicas that share the exact weights out read them once.
  if (exact_apart) place_exact(dp > 1 ? Device::cpu : context.device);
  const TrainingFigures figures = train_steps(transformer, trained, choice, *ranks.groups.data);
  const StepRecord& step = figures.middle;

  json line = head_of_line(ranks, "train", choice);
  line["finetune"] = full ? "full" : "lora";
  line["context"] = choice.context;
  line["sequence"] = sequence_of(choice);
  line["loss"] = figures.loss;
  line["milliseconds"] = 1e3 * static_cast<double>(step.tokens) / step.tokens_per_second;
  line["tokens_per_second"] = step.tokens_per_second;
  line["tflops"] = step.tflops;
  if (alone) {
    line["one_replica_tokens_per_second"] = alone->middle.tokens_per_second;
    line["weak_scaling"] = step.tokens_per_second / (dp * alone->middle.tokens_per_second);
  }
  if (ranks.groups.grid.tp > 1) line["collectives"] = way_of(*ranks.groups.tensor);
  line["layers"] = config.layers;
  line["kept_layers"] = figures.kept_layers;
  line["activation_gib"] = static_cast<double>(figures.activation_bytes) / (int64_t{1} << 30);
  line["ceiling"] = ceiling.to_json();
  line["ratio"] = 1e12 * step.tflops / ceiling.flops_per_second;
  return line;
}

}  // namespace

int bench_train_command(const Arguments& arguments) {
  return run_bench(
      "train",
      "A training step of packed sequences: forward, backward and update. Operations are counted once, also "
      "where activations are computed again. Of several replicas, one alone and then all.",
      "--shape qwen2-7b --context 8192", arguments,
      [](CommandLine& line, BenchChoice& choice) {
        line.add("context", choice.context, "tokens of a step, of each replica", at_least(1));
        line.add("sequence", choice.sequence, "tokens of each sequence in it; 0: one sequence", at_least(0));
        line.add_choice("finetune", choice.finetune, {{"lora", Finetune::lora}, {"full", Finetune::full}},
                        "an adapter of rank 8, or all weights");
        line.add_choice("recompute", choice.recompute,
                        {{"auto", Recompute::automatic}, {"all", Recompute::all}, {"none", Recompute::none}},
                        "layers that compute their activations a second time; auto: as memory needs");
      },
      train, BenchRanks::any);
}

}  // namespace sl
