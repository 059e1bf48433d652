#include "cli/bench.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <vector>

#include "core/rng.hpp"
#include "kernels/device.hpp"
#include "kernels/ops.hpp"

namespace sl {

using nlohmann::json;

double median_seconds(const Context& context, int64_t repeats, const std::function<void()>& call) {
  call();
  DeviceTimer timer(context);
  std::vector<double> times;
  for (int64_t i = 0; i < repeats; ++i) {
    timer.start();
    call();
    times.push_back(timer.stop());
  }
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

void fill_randomly(const Context& context, const Tensor& tensor, uint64_t seed) {
  run(context, FillUniform{.out = tensor, .width = 1.0F, .stream = stream_of({.seed = seed})});
}

json Ceiling::to_json() const {
  return {{"copy_gb_per_s", 1e-9 * copy_bytes_per_second}, {"product_tflops", 1e-12 * flops_per_second}};
}

Ceiling measure_ceiling(const Context& context) {
  const bool gpu = context.device == Device::cuda;
  Ceiling ceiling;
  {
    const int64_t side = gpu ? 8192 : 2048;
    Arena arena(context.device, 3 * Arena::bytes_for(context.storage, {side, side}), "bench");
    const Tensor a = arena.take(context.storage, {side, side}), b = arena.take(context.storage, {side, side});
    const Tensor out = arena.take(context.storage, {side, side});
    fill_randomly(context, a, 1);
    fill_randomly(context, b, 2);
    const double seconds = median_seconds(
        context, 5, [&] { run(context, Gemm{.a = a, .b = b, .out = out, .transpose_b = true}); });
    const auto size = static_cast<double>(side);
    ceiling.flops_per_second = 2.0 * size * size * size / seconds;
  }
  ceiling.copy_bytes_per_second = copy_rate(context);
  return ceiling;
}

double copy_rate(const Context& context) {
  const bool gpu = context.device == Device::cuda;
  const int64_t columns = 1024, rows = (gpu ? int64_t{1} << 30 : int64_t{1} << 28) / (4 * columns);
  Arena arena(context.device, 2 * Arena::bytes_for(DType::f32, {rows, columns}), "bench");
  const Tensor from = arena.take(DType::f32, {rows, columns}), to = arena.take(DType::f32, {rows, columns});
  const double seconds = median_seconds(context, 9, [&] { run(context, Copy{from, to}); });
  return 2.0 * static_cast<double>(from.bytes()) / seconds;
}

double bytes_of_step(const ModelConfig& config, DType storage, int64_t rows, int64_t context, int tp) {
  const int64_t embedding = config.tied ? 0 : config.vocabulary * config.hidden;
  const int64_t key_heads = head_share(config.heads, config.key_heads, tp, 0).key_heads.size();
  const int64_t numbers_of_token = 2 * config.layers * key_heads * config.head_dim;
  const int64_t weights = (config.parameters() - embedding) / tp;
  return static_cast<double>(size_of(storage)) *
         static_cast<double>(weights + rows * context * numbers_of_token);
}

double slowest(const Ranks& ranks, double seconds) {
  auto nanoseconds = static_cast<int64_t>(1e9 * seconds);
  ranks.groups.world->all_reduce_max(std::span(&nanoseconds, 1));
  return 1e-9 * static_cast<double>(nanoseconds);
}

double sum_over_replicas(const Ranks& ranks, double value) {
  double sum = ranks.leader() ? value : 0.0;
  ranks.groups.world->all_reduce_sum(std::span(&sum, 1));
  return sum;
}

double flops_of_token(const ModelConfig& config) {
  const int64_t tables = (config.tied ? 1 : 2) * config.vocabulary * config.hidden;
  return 2.0 * static_cast<double>(config.parameters() - tables);
}

RandomModel::RandomModel(const Ranks& ranks, const ModelConfig& config, int64_t adapters)
    : config_(config),
      shard_(config, ranks.groups.grid.tp, ranks.groups.place.tp_rank),
      weights_(
          random_parameters(config, shard_, ranks.context, 1,
                            ServedAdapters::room_for(std::vector<LoraShape>(static_cast<size_t>(adapters))))),
      transformer_{ranks.context, &config_, &shard_, &weights_, ranks.groups.tensor.get()} {
  adapters_.reserve(static_cast<size_t>(adapters));
  for (int64_t i = 0; i < adapters; ++i) {
    adapters_.emplace_back(config, shard_, LoraShape{}, ranks.context.storage_place(), "adapter");
    fill_randomly(ranks.context, adapters_.back().flat(), static_cast<uint64_t>(100 + i));
  }
}

std::vector<const Adapter*> RandomModel::adapters() const {
  std::vector<const Adapter*> all;
  for (const Adapter& adapter : adapters_) all.push_back(&adapter);
  return all;
}

json head_of_line(const Ranks& ranks, const char* what, const BenchChoice& choice) {
  const Context& context = ranks.context;
  json line = {{"bench", what},
               {"shape", choice.shape},
               {"device", context.device == Device::cuda ? gpu_name(context) : "cpu"},
               {"storage", name_of(context.storage)},
               {"deterministic", context.deterministic},
               {"tp", ranks.groups.grid.tp},
               {"dp", ranks.groups.grid.dp}};
  if (context.device != Device::cuda) line["threads"] = omp_get_max_threads();
  return line;
}

int run_bench(const char* what, const char* summary, const char* example, const Arguments& arguments,
              const std::function<void(CommandLine&, BenchChoice&)>& options,
              json (*measure)(const Ranks&, const ModelConfig&, const BenchChoice&), BenchRanks allowed) {
  BenchChoice choice;
  CommandLine line(fmt::format("bench {}", what), summary);
  line.group("What is measured");
  line.add("shape", choice.shape, "qwen2-7b, llama3.1-8b, qwen2-1.5b or smollm2-135m; random weights")
      .value_name("NAME");
  options(line, choice);
  line.add("repeats", choice.repeats, "measurements; the median is reported", at_least(1));
  add_machine_options(line, choice.model);
  line.example(fmt::format("selflengthen bench {} {}", what, example));
  if (!line.parse(arguments)) return 0;
  const ModelConfig config = config_of_shape(choice.shape);
  const Ranks ranks = start_ranks(choice.model);
  if (allowed == BenchRanks::one && ranks.session.size() != 1) {
    throw InputError(fmt::format("it measures one rank, {} were started", ranks.session.size()), "bench",
                     "start it without mpirun");
  }
  choice.engine = resolve_engine(choice.engine, ranks.context.device);
  check_room(config, ranks);
  const json measured = measure(ranks, config, choice);
  if (ranks.first()) fmt::print("{}\n", measured.dump());
  return 0;
}

}  // namespace sl
