// bench: what the machine gives, beside the ceiling measured in the same run. One JSON line on standard
// output.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>

#include "cli/commands.hpp"
#include "cli/launch.hpp"
#include "core/rng.hpp"
#include "kernels/ops.hpp"
#include "rollout/model_step.hpp"

namespace sl {
namespace {

using nlohmann::json;

struct BenchChoice {
  ModelChoice model;
  std::string shape = "smollm2-135m";
  int64_t batch = 32;
  int64_t context = 512;
  int64_t repeats = 9;
};

// Median seconds of a call, after one to warm up.
double median_seconds(int64_t repeats, const std::function<void()>& call) {
  call();
  std::vector<double> times;
  for (int64_t i = 0; i < repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

void fill_randomly(const Tensor& tensor, uint64_t seed) {
  Random random({.seed = seed});
  std::vector<float> values(static_cast<size_t>(tensor.size()));
  for (float& value : values) value = static_cast<float>(random() >> 8) * 0x1.0p-24F - 0.5F;
  upload(tensor, std::span<const float>(values));
}

struct Product {
  const char* name;
  int64_t n, k;
  int64_t times;  // in a pass through the model
};

std::vector<Product> products_of(const ModelConfig& config) {
  return {{"qkv", config.qkv_rows(), config.hidden, config.layers},
          {"o", config.hidden, config.heads * config.head_dim, config.layers},
          {"gate_up", 2 * config.ffn, config.hidden, config.layers},
          {"down", config.hidden, config.ffn, config.layers},
          {"head", config.vocabulary, config.hidden, 1}};
}

// Seconds of one product of `rows` rows. The weights rotate among copies that no cache holds together.
double product_seconds(const Context& context, const Product& product, int64_t rows, int64_t repeats) {
  constexpr int64_t beyond_caches = int64_t{256} << 20;
  const int64_t bytes = Arena::bytes_for(DType::f32, {product.n, product.k});
  const int64_t copies = std::max<int64_t>(1, (beyond_caches + bytes - 1) / bytes);
  Arena arena(context.device,
              copies * bytes + Arena::bytes_for(DType::f32, {rows, product.k}) +
                  Arena::bytes_for(DType::f32, {rows, product.n}),
              "bench");
  const Tensor x = arena.take(DType::f32, {rows, product.k});
  const Tensor out = arena.take(DType::f32, {rows, product.n});
  fill_randomly(x, 1);
  std::vector<Tensor> weights;
  for (int64_t i = 0; i < copies; ++i) {
    weights.push_back(arena.take(DType::f32, {product.n, product.k}));
    fill_randomly(weights.back(), 2);
  }
  size_t next = 0;
  return median_seconds(std::max(repeats, copies), [&] {
    run(context, Gemm{.a = x, .b = weights[next++ % weights.size()], .out = out, .transpose_b = true});
  });
}

// The ceilings: a large product, and the bytes a copy moves (read and written).
json measure_ceiling(const Context& context, int64_t repeats) {
  constexpr int64_t side = 2048;
  const double product =
      product_seconds(context, {"square", side, side, 1}, side, std::min<int64_t>(repeats, 5));
  constexpr int64_t floats = int64_t{64} << 20;
  Arena arena(context.device, 2 * Arena::bytes_for(DType::f32, {floats}), "bench");
  const Tensor from = arena.take(DType::f32, {1024, floats / 1024});
  const Tensor to = arena.take(DType::f32, {1024, floats / 1024});
  const double copy = median_seconds(repeats, [&] { run(context, Copy{from, to}); });
  return {{"product_gflops", 2e-9 * side * side * side / product}, {"copy_gb_per_s", 8e-9 * floats / copy}};
}

struct Linear {
  json products = json::array();
  double seconds = 0.0;  // of all products of one pass
  double flops = 0.0;
};

Linear measure_products(const Context& context, const ModelConfig& config, const BenchChoice& choice) {
  Linear linear;
  for (const Product& product : products_of(config)) {
    const double seconds = product_seconds(context, product, choice.batch, choice.repeats);
    const double flops = 2.0 * static_cast<double>(choice.batch * product.n * product.k);
    linear.products.push_back({{"name", product.name},
                               {"n", product.n},
                               {"k", product.k},
                               {"milliseconds", 1e3 * seconds},
                               {"gflops", 1e-9 * flops / seconds}});
    linear.seconds += seconds * static_cast<double>(product.times);
    linear.flops += flops * static_cast<double>(product.times);
  }
  return linear;
}

json head_of_line(const char* what, const BenchChoice& choice) {
  return {{"bench", what},
          {"shape", choice.shape},
          {"batch", choice.batch},
          {"threads", omp_get_max_threads()},
          {"deterministic", choice.model.deterministic}};
}

json bench_linear(const Context& context, const ModelConfig& config, const BenchChoice& choice) {
  const Linear linear = measure_products(context, config, choice);
  json line = head_of_line("linear", choice);
  line["products"] = linear.products;
  line["ceiling"] = measure_ceiling(context, choice.repeats);
  line["gflops"] = 1e-9 * linear.flops / linear.seconds;
  line["ratio"] = line["gflops"].get<double>() / line["ceiling"]["product_gflops"].get<double>();
  line["tokens_per_second"] = static_cast<double>(choice.batch) / linear.seconds;
  return line;
}

// Every sequence at `context` tokens, one row each: a step of decoding, sampling with the method's filters
// included.
json bench_decode(const Context& context, const ModelConfig& config, const BenchChoice& choice) {
  constexpr int64_t page_tokens = 16;
  const auto alone = make_local_communicator();
  const Shard shard(config, 1, 0);
  const Linear linear = measure_products(context, config, choice);
  const Parameters weights = random_parameters(config, shard, context.device, 1);
  const Transformer model{context, &config, &shard, &weights, alone.get()};
  const int64_t pages_each = (choice.context + page_tokens - 1) / page_tokens;
  const EngineOptions options{.max_batch_rows = choice.batch,
                              .max_sequences = choice.batch,
                              .max_positions = pages_each * page_tokens};
  ModelStep step(model, options, choice.batch * pages_each, page_tokens);

  Batch batch;
  batch.pages_per_sequence = pages_each;
  batch.query_offsets.push_back(0);
  SamplingRows rows;
  for (int64_t s = 0; s < choice.batch; ++s) {
    const int64_t last = choice.context - 1;
    for (int64_t page = 0; page < pages_each; ++page) {
      batch.page_tables.push_back(static_cast<int32_t>(s * pages_each + page));
    }
    batch.tokens.push_back(static_cast<int32_t>(s % config.vocabulary));
    batch.positions.push_back(static_cast<int32_t>(last));
    batch.slots.push_back(
        static_cast<int32_t>((s * pages_each + last / page_tokens) * page_tokens + last % page_tokens));
    batch.query_offsets.push_back(static_cast<int32_t>(s + 1));
    batch.context_lengths.push_back(static_cast<int32_t>(choice.context));
    batch.output_rows.push_back(static_cast<int32_t>(s));
    rows.slots.push_back(static_cast<int32_t>(s));
    rows.temperature.push_back(0.7F);
    rows.top_p.push_back(0.8F);
    rows.penalty.push_back(1.1F);
    rows.top_k.push_back(20);
    rows.stream_low.push_back(static_cast<uint32_t>(s));
    rows.stream_high.push_back(0);
    rows.position.push_back(static_cast<uint32_t>(last));
    rows.ban.push_back(-1);
    rows.choice.push_back(-1);
  }
  std::vector<int32_t> sampled;
  const double seconds = median_seconds(choice.repeats, [&] { step.run(batch, rows, sampled); });

  json line = head_of_line("decode", choice);
  line["context"] = choice.context;
  line["milliseconds"] = 1e3 * seconds;
  line["tokens_per_second"] = static_cast<double>(choice.batch) / seconds;
  line["ceiling"] = measure_ceiling(context, choice.repeats);
  line["ceiling"]["products_tokens_per_second"] = static_cast<double>(choice.batch) / linear.seconds;
  line["ratio"] = linear.seconds / seconds;
  return line;
}

int bench(const char* what, const char* summary, const Arguments& arguments,
          json (*measure)(const Context&, const ModelConfig&, const BenchChoice&), bool with_context) {
  BenchChoice choice;
  CommandLine line(fmt::format("bench {}", what), summary);
  line.group("What is measured");
  line.add("shape", choice.shape, "qwen2-7b, llama3.1-8b or smollm2-135m; random weights").value_name("NAME");
  line.add("batch", choice.batch, "rows (sequences)", at_least(1));
  if (with_context) line.add("context", choice.context, "tokens of every sequence", at_least(1));
  line.add("repeats", choice.repeats, "measurements; the median is reported", at_least(1));
  line.add("threads", choice.model.threads, "threads; 0: all cores", at_least(0));
  line.add("deterministic", choice.model.deterministic,
           "products in an order that does not depend on the batch");
  line.example(fmt::format("selflengthen bench {} --shape smollm2-135m --batch 32", what));
  if (!line.parse(arguments)) return 0;
  const ModelConfig config = config_of_shape(choice.shape);
  const Ranks ranks = start_ranks(choice.model);
  if (ranks.session.size() != 1) {
    throw InputError(fmt::format("it measures one rank, {} were started", ranks.session.size()), "bench",
                     "start it without mpirun");
  }
  fmt::print("{}\n", measure(ranks.context, config, choice).dump());
  return 0;
}

}  // namespace

int bench_linear_command(const Arguments& arguments) {
  return bench("linear",
               "The products of one pass through a model alone, weights not in cache: the rate, the tokens a "
               "second that "
               "they would allow, and the rate of a large product in the same run.",
               arguments, bench_linear, /*with_context=*/false);
}

int bench_decode_command(const Arguments& arguments) {
  return bench(
      "decode",
      "A step of decoding with random weights of a shape, sampling included, beside what its products alone "
      "would allow, measured in the same run.",
      arguments, bench_decode, /*with_context=*/true);
}

}  // namespace sl
