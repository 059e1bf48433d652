// bench decode, prefill, rollout: whole steps, and the engine under load.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>

#include "cli/bench.hpp"
#include "cli/commands.hpp"
#include "core/rng.hpp"
#include "dist/nccl.hpp"
#include "kernels/device.hpp"
#include "kernels/ops.hpp"
#include "rollout/engine.hpp"
#include "rollout/flow.hpp"
#include "rollout/model_step.hpp"

namespace sl {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void add_method_row(SamplingRows& rows, int64_t slot, int64_t position) {
  rows.slots.push_back(static_cast<int32_t>(slot));
  rows.temperature.push_back(0.7F);
  rows.top_p.push_back(0.8F);
  rows.penalty.push_back(1.1F);
  rows.top_k.push_back(20);
  rows.stream_low.push_back(static_cast<uint32_t>(slot));
  rows.stream_high.push_back(0);
  rows.position.push_back(static_cast<uint32_t>(position));
  rows.ban.push_back(-1);
  rows.choice.push_back(-1);
  rows.best.push_back(0);
}

// Appends a sequence with pages of its own whose last `rows` of `context` tokens are computed.
void add_sequence(Batch& batch, SamplingRows& sampling, int64_t rows, int64_t context, int64_t page_tokens,
                  int64_t vocabulary) {
  if (batch.query_offsets.empty()) batch.query_offsets.push_back(0);
  const int64_t s = batch.sequences();
  const int64_t first_page = s * batch.pages_per_sequence;
  for (int64_t page = 0; page < batch.pages_per_sequence; ++page)
    batch.page_tables.push_back(static_cast<int32_t>(first_page + page));
  for (int64_t position = context - rows; position < context; ++position) {
    batch.tokens.push_back(static_cast<int32_t>((7919 * position + 31 * s) % vocabulary));
    batch.positions.push_back(static_cast<int32_t>(position));
    batch.slots.push_back(static_cast<int32_t>(first_page * page_tokens + position));
  }
  batch.query_offsets.push_back(static_cast<int32_t>(batch.rows()));
  batch.context_lengths.push_back(static_cast<int32_t>(context));
  batch.output_rows.push_back(static_cast<int32_t>(batch.rows() - 1));
  add_method_row(sampling, s, context);
}

// Sequences take turns with the adapters; the rows of one are together.
void use_adapters(Batch& batch, int64_t adapters) {
  for (int64_t i = 0; i < adapters; ++i) {
    batch.segments.push_back(
        {static_cast<int32_t>(i), i * batch.rows() / adapters, (i + 1) * batch.rows() / adapters});
  }
}

// The time of a step while the next one is planned and sent, as the engine runs.
double step_seconds(ModelStep& step, const Batch& batch, const SamplingRows& rows, int64_t repeats) {
  StepResult result;
  const auto steps = [&](int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      step.launch(batch, rows);
      if (i >= step.lag()) step.collect(result);
    }
    for (int64_t i = 0; i < std::min(count, step.lag()); ++i) step.collect(result);
  };
  steps(3);
  const auto begin = Clock::now();
  steps(repeats);
  return seconds_since(begin) / static_cast<double>(repeats);
}

// A group without collectives on tensors: what a step takes besides them. Numbers come out wrong; a gather
// takes every part to be this rank's, so that tokens are drawn from something like logits.
class NoCollectives : public Communicator {
 public:
  NoCollectives(const Context& context, const Communicator& group)
      : context_(context), rank_(group.rank()), size_(group.size()), in_stream_(group.in_stream()) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool in_stream() const override { return in_stream_; }
  void all_reduce_sum(const Tensor&) override {}
  void all_reduce_max(const Tensor&) override {}
  void reduce_sum(const Tensor&, int) override {}
  void reduce_scatter_sum(const Tensor& whole, const Tensor& part) override {
    run(context_, Copy{whole.at(rank_), part});
  }
  void all_gather(const Tensor& part, const Tensor& out) override {
    for (int rank = 0; rank < size_; ++rank) run(context_, Copy{part, out.at(rank)});
  }
  void broadcast(std::span<std::byte>, int) override {}
  void all_reduce_sum(std::span<double>) override {}
  void all_reduce_max(std::span<int64_t>) override {}
  std::vector<std::string> all_gather(const std::string& part) override { return {part}; }
  void barrier() override {}

 private:
  Context context_;
  int rank_, size_;
  bool in_stream_;
};

json decode(const Ranks& ranks, const ModelConfig& config, const BenchChoice& choice) {
  const Context& context = ranks.context;
  const int tp = ranks.groups.grid.tp, dp = ranks.groups.grid.dp;
  const Ceiling ceiling = measure_ceiling(context);
  const RandomModel model(ranks, config, choice.adapters);
  const int64_t page_tokens = choice.engine.page_tokens;
  Batch batch;
  SamplingRows rows;
  batch.pages_per_sequence = (choice.context + page_tokens - 1) / page_tokens;
  for (int64_t s = 0; s < choice.batch; ++s)
    add_sequence(batch, rows, 1, choice.context, page_tokens, config.vocabulary);
  use_adapters(batch, choice.adapters);
  const EngineOptions options{.max_batch_rows = choice.batch,
                              .max_sequences = choice.batch,
                              .max_positions = batch.pages_per_sequence * page_tokens};
  const auto seconds_with = [&](const Transformer& transformer) {
    ModelStep step(transformer, options, choice.batch * batch.pages_per_sequence, page_tokens);
    step.set_adapters(model.adapters());
    ranks.groups.world->barrier();
    return slowest(ranks, step_seconds(step, batch, rows, 3 * choice.repeats));
  };
  const double seconds = seconds_with(model.transformer());

  const double bytes = bytes_of_step(config, context.storage, choice.batch, choice.context, tp);
  const double flops =
      static_cast<double>(choice.batch) *
      (flops_of_token(config) + 2.0 * static_cast<double>(config.vocabulary * config.hidden)) / tp;
  const double floor = std::max(bytes / ceiling.copy_bytes_per_second, flops / ceiling.flops_per_second);
  json line = head_of_line(ranks, "decode", choice);
  line["batch"] = choice.batch;
  line["context"] = choice.context;
  line["adapters"] = choice.adapters;
  line["milliseconds"] = 1e3 * seconds;
  line["tokens_per_second"] = static_cast<double>(dp * choice.batch) / seconds;
  line["gigabytes"] = 1e-9 * bytes;
  line["floor_milliseconds"] = 1e3 * floor;
  line["ceiling"] = ceiling.to_json();
  line["ratio"] = floor / seconds;
  if (tp > 1) {
    NoCollectives none(context, *ranks.groups.tensor);
    Transformer apart = model.transformer();
    apart.tensor_parallel = &none;
    const double without = seconds_with(apart);
    line["collectives"] = way_of(*ranks.groups.tensor);
    line["milliseconds_without_collectives"] = 1e3 * without;
    line["share_of_collectives"] = 1.0 - without / seconds;
  }
  return line;
}

json prefill(const Ranks& ranks, const ModelConfig& config, const BenchChoice& choice) {
  const Context& context = ranks.context;
  const int tp = ranks.groups.grid.tp, dp = ranks.groups.grid.dp;
  const Ceiling ceiling = measure_ceiling(context);
  const RandomModel model(ranks, config, choice.adapters);
  const int64_t page_tokens = choice.engine.page_tokens;
  const int64_t chunk = std::min(choice.context, choice.engine.max_batch_rows);
  const EngineOptions options{
      .max_batch_rows = chunk, .max_sequences = 1, .max_positions = choice.context + page_tokens};
  const int64_t pages = (choice.context + page_tokens - 1) / page_tokens;
  ModelStep step(model.transformer(), options, pages, page_tokens);
  step.set_adapters(model.adapters());
  std::vector<Batch> batches;
  std::vector<SamplingRows> samplings;
  for (int64_t end = std::min(chunk, choice.context), begin = 0; begin < choice.context;
       begin = end, end = std::min(end + chunk, choice.context)) {
    Batch& batch = batches.emplace_back();
    batch.pages_per_sequence = pages;
    add_sequence(batch, samplings.emplace_back(), end - begin, end, page_tokens, config.vocabulary);
    use_adapters(batch, std::min<int64_t>(choice.adapters, 1));
  }
  StepResult result;
  ranks.groups.world->barrier();
  const double seconds = slowest(ranks, median_seconds(context, choice.repeats, [&] {
                                   for (size_t i = 0; i < batches.size(); ++i) {
                                     step.launch(batches[i], samplings[i]);
                                     step.collect(result);
                                   }
                                 }));
  const auto tokens = static_cast<double>(choice.context);
  const double attention =
      2.0 * tokens * tokens * static_cast<double>(config.layers * config.heads * config.head_dim);
  const double flops = (tokens * flops_of_token(config) + attention) / tp;  // of a rank
  json line = head_of_line(ranks, "prefill", choice);
  line["context"] = choice.context;
  line["chunk"] = chunk;
  line["adapters"] = choice.adapters;
  line["milliseconds"] = 1e3 * seconds;
  line["tokens_per_second"] = dp * tokens / seconds;
  line["tflops"] = 1e-12 * flops / seconds;
  line["ceiling"] = ceiling.to_json();
  line["ratio"] = flops / seconds / ceiling.flops_per_second;
  return line;
}

// Tokens of random text: token i is " w<i>".
Tokenizer numbered_tokenizer(int64_t vocabulary) {
  TokenizerSpec spec;
  spec.where = "bench";
  for (int byte = 0; byte < 256; ++byte) spec.tokens.emplace_back(1, static_cast<char>(byte));
  for (int64_t i = 256; i < vocabulary; ++i) spec.tokens.push_back(" w" + std::to_string(i));
  return Tokenizer(std::move(spec));
}

// The load of a stage: pairs of requests share a prompt; lengths of the output are fixed, or log-normal
// around
// --output-tokens and cut at twice that, as those of a real stage.
class Load {
 public:
  // Replicas have requests of their own.
  Load(const ModelConfig& config, const BenchChoice& choice, int replica)
      : config_(config), choice_(choice), first_(int64_t{replica} << 24) {}

  int64_t longest() const {
    return choice_.input_tokens + (choice_.spread > 0.0 ? 2 : 1) * choice_.output_tokens;
  }

  // `progress` in [0, 1): that share of the output has been generated already, and is part of the prompt.
  Request request(int64_t number, double progress) {
    number += first_;
    Request request;
    Random prompt({.seed = 1, .sample = number / 2});
    for (int64_t i = 0; i < choice_.input_tokens; ++i)
      request.prompt.push_back(static_cast<int32_t>(prompt.below(config_.vocabulary)));
    Random own({.seed = 2, .sample = number});
    int64_t length = choice_.output_tokens;
    if (choice_.spread > 0.0) {
      const double normal =
          std::sqrt(-2.0 * std::log(1.0 - own.uniform())) * std::cos(2.0 * std::numbers::pi * own.uniform());
      length =
          std::clamp<int64_t>(std::llround(static_cast<double>(length) * std::exp(choice_.spread * normal)),
                              1, 2 * choice_.output_tokens);
    }
    const int64_t before =
        std::min<int64_t>(length - 1, std::llround(progress * static_cast<double>(length)));
    for (int64_t i = 0; i < before; ++i)
      request.prompt.push_back(static_cast<int32_t>(own.below(config_.vocabulary)));
    request.sampling.max_tokens = length - before;
    request.sampling.stop = {};
    request.stream = static_cast<uint64_t>(number);
    request.adapter = choice_.adapters > 0 ? static_cast<int32_t>(number % choice_.adapters) : -1;
    request.watch = Language::en;
    return request;
  }

 private:
  const ModelConfig& config_;
  const BenchChoice& choice_;
  int64_t first_;
};

Task<int64_t> complete(Engine& engine, Request request) {
  co_return std::ssize((co_await engine.complete(std::move(request))).tokens);
}

// Keeps `most` requests in the engine; what it has done since start().
class Drive {
 public:
  Drive(Engine& engine, Load& load, int64_t most) : engine_(engine), load_(load), most_(most) {}

  void start(double progress) {
    tasks_.push_back(complete(engine_, load_.request(started_++, progress)));
    tasks_.back().start();
  }
  bool step(int64_t count) {
    while (std::ssize(tasks_) < most_ && started_ < count) start(0.0);
    if (tasks_.empty()) return false;
    engine_.step();
    std::erase_if(tasks_, [](const Task<int64_t>& task) { return task.done(); });
    return true;
  }
  int64_t started() const { return started_; }

 private:
  Engine& engine_;
  Load& load_;
  int64_t most_;
  int64_t started_ = 0;
  std::vector<Task<int64_t>> tasks_;
};

// What one replica's engine did.
struct RolloutFigures {
  EngineStatistics before, after;
  int64_t pages = 0, average = 0, most_running = 0, tokens_until_tail = 0;
  double seconds = 0.0, until_tail = 0.0;
  double tokens() const { return static_cast<double>(after.generated_tokens - before.generated_tokens); }
};

// The load on this replica. Collective over it.
RolloutFigures roll_out(const Ranks& ranks, const RandomModel& model, const ModelConfig& config,
                        const BenchChoice& choice) {
  Load load(config, choice, ranks.groups.place.replica);
  const EngineLimits limits = engine_limits(choice.engine, model.transformer(), load.longest() + 1);
  const EngineOptions options{.max_batch_rows = limits.max_batch_rows,
                              .max_sequences = limits.max_sequences,
                              .max_positions = limits.max_positions};
  ModelStep step(model.transformer(), options, limits.pages, limits.tokens_per_page);
  step.set_adapters(model.adapters());
  const Tokenizer tokenizer = numbered_tokenizer(config.vocabulary);
  Engine engine(step, tokenizer, options);
  RolloutFigures figures;
  figures.pages = limits.pages;
  // As many at a time as fit on average when half done, so that nothing has to give way.
  figures.average = choice.input_tokens + choice.output_tokens / 2;
  const int64_t fit = limits.pages * limits.tokens_per_page * 95 / (100 * figures.average);
  const int64_t most = std::clamp<int64_t>(fit, 1, limits.max_sequences);
  Drive drive(engine, load, choice.seconds > 0.0 ? most : limits.max_sequences);

  int64_t count = choice.count;
  if (choice.seconds > 0.0) {
    // As in the middle of a long stage: every sequence is somewhere on its way.
    count = std::numeric_limits<int64_t>::max();
    Random random({.seed = 3, .sample = ranks.groups.place.replica});
    for (int64_t i = 0; i < most; ++i) drive.start(random.uniform());
    // Until all their prompts have been read: a step then has a row for each.
    EngineStatistics before, now;
    do {
      before = now;
      drive.step(count);
      now = engine.statistics();
    } while (now.waiting > 0 || now.rows - before.rows > now.running);
  }
  figures.before = engine.statistics();
  const auto begin = Clock::now();
  // The ranks of a replica stop after the same step.
  const auto over = [&] {
    std::byte done{static_cast<uint8_t>(choice.seconds > 0.0 && seconds_since(begin) >= choice.seconds)};
    if (choice.seconds > 0.0) ranks.groups.tensor->broadcast(std::span(&done, 1), 0);
    return done != std::byte{0};
  };
  // The tail begins when the last request has been taken.
  while (drive.step(count)) {
    const EngineStatistics now = engine.statistics();
    figures.most_running = std::max(figures.most_running, now.running);
    if (figures.until_tail == 0.0 && drive.started() >= count && now.waiting == 0) {
      figures.until_tail = seconds_since(begin);
      figures.tokens_until_tail = now.generated_tokens - figures.before.generated_tokens;
    }
    if (over()) break;
  }
  figures.seconds = seconds_since(begin);
  figures.after = engine.statistics();
  return figures;
}

json rollout(const Ranks& ranks, const ModelConfig& config, const BenchChoice& choice) {
  const Ceiling ceiling = measure_ceiling(ranks.context);
  const RandomModel model(ranks, config, choice.adapters);
  const int tp = ranks.groups.grid.tp, dp = ranks.groups.grid.dp;
  json line = head_of_line(ranks, "rollout", choice);
  // One replica while the others wait, then all: what a replica loses by not being alone. Before that all of
  // them for a moment, so that nobody chooses algorithms while it is measured.
  double alone = 0.0;
  if (dp > 1) {
    BenchChoice short_choice = choice;
    short_choice.seconds = 0.5;
    roll_out(ranks, model, config, short_choice);
    ranks.groups.world->barrier();
    if (ranks.groups.place.replica == 0) {
      const RolloutFigures figures = roll_out(ranks, model, config, choice);
      alone = figures.tokens() / figures.seconds;
    }
    ranks.groups.world->barrier();
  }
  const RolloutFigures figures = roll_out(ranks, model, config, choice);
  // A stage is over when its last replica is.
  const double seconds = slowest(ranks, figures.seconds);
  const double rate =
      sum_over_replicas(ranks, figures.tokens() / (choice.seconds > 0.0 ? figures.seconds : seconds));

  line["input_tokens"] = choice.input_tokens;
  line["output_tokens"] = choice.output_tokens;
  line["spread"] = choice.spread;
  line["adapters"] = choice.adapters;
  line["sequences"] = figures.most_running;
  line["pages"] = figures.pages;
  line["seconds"] = seconds;
  line["tokens_per_second"] = rate;
  if (dp > 1) {
    line["one_replica_tokens_per_second"] = alone;
    line["weak_scaling"] = rate / (dp * alone);
  }
  if (choice.seconds == 0.0) {
    line["count"] = choice.count;
    if (figures.until_tail > 0.0)
      line["tokens_per_second_before_tail"] =
          static_cast<double>(figures.tokens_until_tail) / figures.until_tail;
  }
  const EngineStatistics &before = figures.before, &after = figures.after;
  line["steps"] = after.steps - before.steps;
  line["prompt_tokens_computed"] = after.prompt_tokens_computed - before.prompt_tokens_computed;
  line["prompt_tokens_shared"] = after.prompt_tokens_shared - before.prompt_tokens_shared;
  line["recomputed_tokens"] = after.recomputed_tokens - before.recomputed_tokens;
  line["early_stops"] = after.hopeless_stops - before.hopeless_stops;
  line["early_stop_tokens"] = after.hopeless_tokens - before.hopeless_tokens;
  // What a step of that many sequences, half done on average, must read.
  const double bytes =
      bytes_of_step(config, ranks.context.storage, figures.most_running, figures.average, tp);
  const double floor = dp * static_cast<double>(figures.most_running) * ceiling.copy_bytes_per_second / bytes;
  line["floor_tokens_per_second"] = floor;
  line["ceiling"] = ceiling.to_json();
  line["ratio"] = rate / floor;
  return line;
}

void adapters_option(CommandLine& line, BenchChoice& choice) {
  line.add("adapters", choice.adapters, "random LoRA adapters of rank 8 that rows take turns with; 0: none",
           at_least(0));
}

}  // namespace

int bench_decode_command(const Arguments& arguments) {
  return run_bench(
      "decode",
      "A step of decoding, sampling included, beside the time its bytes (weights, keys and values) need at "
      "the "
      "rate of a copy. With --tp also without its collectives.",
      "--shape smollm2-135m --batch 32 --context 512", arguments,
      [](CommandLine& line, BenchChoice& choice) {
        line.add("batch", choice.batch, "sequences", at_least(1));
        line.add("context", choice.context, "tokens of every sequence", at_least(1));
        adapters_option(line, choice);
        add_engine_options(line, choice.engine);
      },
      decode, BenchRanks::any);
}

int bench_prefill_command(const Arguments& arguments) {
  return run_bench(
      "prefill", "Reading one prompt, in chunks of --max-batch-rows, beside the rate of a large product.",
      "--shape qwen2-7b --context 8192 --max-batch-rows 8192", arguments,
      [](CommandLine& line, BenchChoice& choice) {
        line.add("context", choice.context, "tokens of the prompt", at_least(1));
        adapters_option(line, choice);
        add_engine_options(line, choice.engine);
      },
      prefill, BenchRanks::any);
}

int bench_rollout_command(const Arguments& arguments) {
  return run_bench(
      "rollout",
      "The engine under the load of a stage: pairs of requests with a shared prompt, the method's sampling, "
      "the "
      "watch for repetitions. Of several replicas, one alone and then all.",
      "--shape qwen2-7b --input-tokens 200 --output-tokens 6000 --seconds 20", arguments,
      [](CommandLine& line, BenchChoice& choice) {
        line.add("input-tokens", choice.input_tokens, "of a prompt", at_least(1));
        line.add("output-tokens", choice.output_tokens, "of a response", at_least(1));
        line.add("spread", choice.spread,
                 "standard deviation of the logarithm of a response's length, cut at twice --output-tokens; "
                 "0: all "
                 "are as long",
                 at_least(0));
        line.add("count", choice.count, "responses of a whole stage, of each replica", at_least(1));
        line.add("seconds", choice.seconds,
                 "instead of a stage: measure so long in steady state, every sequence somewhere on its way",
                 at_least(0));
        adapters_option(line, choice);
        add_engine_options(line, choice.engine);
      },
      rollout, BenchRanks::any);
}

}  // namespace sl
