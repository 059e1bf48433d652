// bench linear, attention, sampling: single operations beside their ceilings.
#include <algorithm>
#include <cmath>

#include "cli/bench.hpp"
#include "cli/commands.hpp"
#include "core/rng.hpp"
#include "kernels/ops.hpp"

namespace sl {
namespace {

using nlohmann::json;

struct Product {
  const char* name;
  int64_t n, k;
  int64_t times;  // in a pass through the model
  DType out;
};

std::vector<Product> products_of(const ModelConfig& config, DType storage) {
  return {{"qkv", config.qkv_rows(), config.hidden, config.layers, storage},
          {"o", config.hidden, config.heads * config.head_dim, config.layers, storage},
          {"gate_up", 2 * config.ffn, config.hidden, config.layers, storage},
          {"down", config.hidden, config.ffn, config.layers, storage},
          {"head", config.vocabulary, config.hidden, 1, DType::f32}};
}

// The weights rotate among copies that no cache holds together; one measurement is a round over all copies.
double product_seconds(const Context& context, const Product& product, const BenchChoice& choice) {
  constexpr int64_t beyond_caches = int64_t{256} << 20;
  const int64_t rows = choice.batch;
  const int64_t bytes = Arena::bytes_for(context.storage, {product.n, product.k});
  const int64_t copies = std::max<int64_t>(2, (beyond_caches + bytes - 1) / bytes);
  Arena arena(context.device,
              copies * bytes + Arena::bytes_for(context.storage, {rows, product.k}) +
                  Arena::bytes_for(DType::f32, {rows, product.n}),
              "bench");
  const Tensor x = arena.take(context.storage, {rows, product.k});
  const Tensor out = arena.take(product.out, {rows, product.n});
  fill_randomly(context, x, 1);
  std::vector<Tensor> weights;
  for (int64_t i = 0; i < copies; ++i) {
    weights.push_back(arena.take(context.storage, {product.n, product.k}));
    fill_randomly(context, weights.back(), static_cast<uint64_t>(2 + i));
  }
  const auto round = [&] {
    for (const Tensor& weight : weights)
      run(context, Gemm{.a = x, .b = weight, .out = out, .transpose_b = true});
  };
  round();
  const Graph graph = Graph::record(context, round);
  return median_seconds(context, choice.repeats, [&] { graph.replay(context); }) /
         static_cast<double>(copies);
}

// The products of a layer one after the other, as in a step, for a few layers with weights of their own.
double layer_seconds(const Context& context, const std::vector<Product>& products,
                     const BenchChoice& choice) {
  constexpr int64_t layers = 4;
  int64_t bytes = 0;
  for (const Product& product : products) {
    bytes += layers * Arena::bytes_for(context.storage, {product.n, product.k}) +
             Arena::bytes_for(context.storage, {choice.batch, product.k}) +
             Arena::bytes_for(DType::f32, {choice.batch, product.n});
  }
  Arena arena(context.device, bytes, "bench");
  std::vector<Gemm> gemms;
  for (const Product& product : products) {
    gemms.push_back({.a = arena.take(context.storage, {choice.batch, product.k}),
                     .b = {},
                     .out = arena.take(product.out, {choice.batch, product.n}),
                     .transpose_b = true});
    fill_randomly(context, gemms.back().a, 1);
  }
  const auto count = static_cast<int64_t>(products.size());
  std::vector<Tensor> weights;
  for (int64_t i = 0; i < layers * count; ++i) {
    const Product& product = products[static_cast<size_t>(i % count)];
    weights.push_back(arena.take(context.storage, {product.n, product.k}));
    fill_randomly(context, weights.back(), static_cast<uint64_t>(2 + i));
  }
  const auto round = [&] {
    for (size_t i = 0; i < weights.size(); ++i) {
      Gemm gemm = gemms[i % gemms.size()];
      gemm.b = weights[i];
      run(context, gemm);
    }
  };
  round();
  const Graph graph = Graph::record(context, round);
  return median_seconds(context, choice.repeats, [&] { graph.replay(context); }) / layers;
}

json linear(const Ranks& ranks, const ModelConfig& config, const BenchChoice& choice) {
  const Context& context = ranks.context;
  const Ceiling ceiling = measure_ceiling(context);
  json line = head_of_line(ranks, "linear", choice);
  line["batch"] = choice.batch;
  double seconds = 0.0, flops = 0.0, floor = 0.0, layer = 0.0;
  std::vector<Product> products = products_of(config, context.storage);
  for (const Product& product : products) {
    const double taken = product_seconds(context, product, choice);
    const double work = 2.0 * static_cast<double>(choice.batch * product.n * product.k);
    const double bytes = static_cast<double>(size_of(context.storage) * product.n * product.k);
    const double least = std::max(work / ceiling.flops_per_second, bytes / ceiling.copy_bytes_per_second);
    line["products"].push_back({{"name", product.name},
                                {"n", product.n},
                                {"k", product.k},
                                {"microseconds", 1e6 * taken},
                                {"gflops", 1e-9 * work / taken},
                                {"gb_per_s", 1e-9 * bytes / taken},
                                {"ratio", least / taken}});
    if (product.times > 1) layer += taken;
    seconds += taken * static_cast<double>(product.times);
    flops += work * static_cast<double>(product.times);
    floor += least * static_cast<double>(product.times);
  }
  line["layer_microseconds"] = 1e6 * layer;
  std::erase_if(products, [](const Product& product) { return product.times == 1; });
  line["layer_in_sequence_microseconds"] = 1e6 * layer_seconds(context, products, choice);
  line["gflops"] = 1e-9 * flops / seconds;
  line["tokens_per_second"] = static_cast<double>(choice.batch) / seconds;
  line["ceiling"] = ceiling.to_json();
  line["ratio"] = floor / seconds;
  return line;
}

// Causal attention of one packed sequence, as in training; operations are counted for the causal half.
json packed(const Context& context, const ModelConfig& config, const BenchChoice& choice,
            const Ceiling& ceiling) {
  const int64_t rows = choice.context;
  const int64_t width = config.heads * config.head_dim;
  Arena arena(context.device,
              2 * Arena::bytes_for(context.storage, {rows, config.qkv_rows() + width}) +
                  Arena::bytes_for(DType::f32, {rows, config.heads}) + 512,
              "bench");
  const Tensor qkv = arena.take(context.storage, {rows, config.qkv_rows()});
  const Tensor out = arena.take(context.storage, {rows, config.heads * config.head_dim});
  const Tensor log_sum_exp = arena.take(DType::f32, {rows, config.heads});
  const Tensor offsets = arena.take(DType::i32, {2});
  const std::vector<int32_t> bounds = {0, static_cast<int32_t>(rows)};
  upload(offsets, std::span(bounds));
  fill_randomly(context, qkv, 1);
  const float scale = 1.0F / std::sqrt(static_cast<float>(config.head_dim));
  const double forward = median_seconds(context, choice.repeats, [&] {
    run(context, PackedAttention{.qkv = qkv,
                                 .offsets = offsets,
                                 .query_heads = config.heads,
                                 .key_heads = config.key_heads,
                                 .scale = scale,
                                 .out = out,
                                 .log_sum_exp = log_sum_exp});
  });
  const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(rows * width);
  const auto report = [&](double seconds, double work) -> json {
    return {{"milliseconds", 1e3 * seconds},
            {"tflops", 1e-12 * work / seconds},
            {"ratio", work / seconds / ceiling.flops_per_second}};
  };
  json line = {{"packed_forward", report(forward, flops)}};
  if (!choice.backward) return line;
  const Tensor grad_out = arena.take(context.storage, {rows, width});
  const Tensor grad_qkv = arena.take(context.storage, {rows, config.qkv_rows()});
  fill_randomly(context, grad_out, 2);
  const double backward = median_seconds(context, choice.repeats, [&] {
    run(context, PackedAttentionBackward{.qkv = qkv,
                                         .offsets = offsets,
                                         .query_heads = config.heads,
                                         .key_heads = config.key_heads,
                                         .scale = scale,
                                         .out = out,
                                         .log_sum_exp = log_sum_exp,
                                         .grad_out = grad_out,
                                         .grad_qkv = grad_qkv});
  });
  line["packed_backward"] = report(backward, 2.5 * flops);  // five products, where forward has two
  return line;
}

// One decoding row a sequence over pages, as in rollouts. Several layers' pages, so that no cache holds them.
json paged_decode(const Context& context, const ModelConfig& config, const BenchChoice& choice,
                  const Ceiling& ceiling) {
  const int64_t page = choice.engine.page_tokens, batch = choice.batch;
  const int64_t pages_each = (choice.context + page - 1) / page;
  const int64_t pages = pages_each * batch;
  const int64_t numbers = pages * config.key_heads * page * config.head_dim;
  const int64_t copies = std::max<int64_t>(2, (int64_t{1} << 28) / std::max<int64_t>(numbers, 1));
  const AttentionWorkspace workspace = attention_workspace(context.device, batch, batch, pages_each * page,
                                                           config.heads, config.key_heads, config.head_dim);
  const int64_t width = config.qkv_rows() + config.heads * config.head_dim;
  Arena arena(context.device,
              2 * copies * Arena::bytes_for(context.storage, {numbers}) +
                  Arena::bytes_for(context.storage, {batch, width}) +
                  Arena::bytes_for(DType::i32, {3 * batch + 64 + pages + workspace.plan}) +
                  Arena::bytes_for(DType::f32, {workspace.scratch}) + 1024,
              "bench");
  const Tensor qkv = arena.take(context.storage, {batch, config.qkv_rows()});
  const Tensor out = arena.take(context.storage, {batch, config.heads * config.head_dim});
  std::vector<int32_t> table(static_cast<size_t>(pages)), offsets, lengths;
  for (int32_t i = 0; i < pages; ++i) table[static_cast<size_t>(i)] = i;
  // Pages of a sequence lie anywhere in a pool that has been in use for a while.
  Random random({.seed = 1});
  for (int64_t i = pages - 1; i > 0; --i) {
    std::swap(table[static_cast<size_t>(i)], table[static_cast<size_t>(random.below(i + 1))]);
  }
  for (int64_t s = 0; s <= batch; ++s) offsets.push_back(static_cast<int32_t>(s));
  lengths.assign(static_cast<size_t>(batch), static_cast<int32_t>(choice.context));
  const auto place = [&](const std::vector<int32_t>& host) {
    const Tensor tensor = arena.take(DType::i32, {static_cast<int64_t>(host.size())});
    upload(tensor, std::span(host));
    return tensor;
  };
  const Tensor tables = place(table).reshaped({batch, pages_each});
  const Tensor query_offsets = place(offsets), context_lengths = place(lengths);
  const Tensor plan = arena.take(DType::i32, {workspace.plan});
  const Tensor scratch = arena.take(DType::f32, {workspace.scratch});
  fill_randomly(context, qkv, 1);
  std::vector<std::pair<Tensor, Tensor>> layers;
  for (int64_t i = 0; i < copies; ++i) {
    const auto pool = [&](uint64_t seed) {
      const Tensor tensor = arena.take(context.storage, {pages, config.key_heads, page, config.head_dim});
      fill_randomly(context, tensor.reshaped({numbers}), seed);
      return tensor;
    };
    const auto at = static_cast<uint64_t>(i);
    layers.emplace_back(pool(2 * at + 2), pool(2 * at + 3));
  }
  run(context, PlanPagedAttention{query_offsets, context_lengths, config.heads, config.key_heads, plan});
  const auto round = [&] {
    for (const auto& [keys, values] : layers) {
      run(context, PagedAttention{.qkv = qkv,
                                  .key_pages = keys,
                                  .value_pages = values,
                                  .query_offsets = query_offsets,
                                  .context_lengths = context_lengths,
                                  .page_tables = tables,
                                  .query_heads = config.heads,
                                  .longest_query = 1,
                                  .scale = 1.0F / std::sqrt(static_cast<float>(config.head_dim)),
                                  .out = out,
                                  .plan = plan,
                                  .scratch = scratch});
    }
  };
  round();
  const Graph graph = Graph::record(context, round);
  const double seconds =
      median_seconds(context, choice.repeats, [&] { graph.replay(context); }) / static_cast<double>(copies);
  const double bytes = 2.0 * static_cast<double>(size_of(context.storage) * batch * choice.context *
                                                 config.key_heads * config.head_dim);
  return {{"microseconds", 1e6 * seconds},
          {"tb_per_s", 1e-12 * bytes / seconds},
          {"ratio", bytes / seconds / ceiling.copy_bytes_per_second}};
}

json attention(const Ranks& ranks, const ModelConfig& config, const BenchChoice& choice) {
  const Context& context = ranks.context;
  const Ceiling ceiling = measure_ceiling(context);
  json line = head_of_line(ranks, "attention", choice);
  line["batch"] = choice.batch;
  line["context"] = choice.context;
  line.update(packed(context, config, choice, ceiling));
  line["paged_decode"] = paged_decode(context, config, choice, ceiling);
  line["ceiling"] = ceiling.to_json();
  return line;
}

// The method's filters and penalty on every row.
json sampling(const Ranks& ranks, const ModelConfig& config, const BenchChoice& choice) {
  const Context& context = ranks.context;
  const Ceiling ceiling = measure_ceiling(context);
  const int64_t rows = choice.batch, words = (config.vocabulary + 31) / 32;
  Arena arena(context.device,
              2 * Arena::bytes_for(DType::f32, {rows, config.vocabulary}) +
                  Arena::bytes_for(DType::u32, {rows, words}) + 16 * Arena::bytes_for(DType::i32, {rows}),
              "bench");
  const Tensor logits = arena.take(DType::f32, {rows, config.vocabulary});
  const Tensor scratch = arena.take(DType::f32, {rows, config.vocabulary});
  const Tensor seen = arena.take(DType::u32, {rows, words});
  run(context, FillUniform{.out = logits, .width = 12.0F, .stream = 1});
  const auto place = [&]<typename T>(const std::vector<T>& host) {
    const Tensor tensor = arena.take(dtype_of<T>(), {static_cast<int64_t>(host.size())});
    upload(tensor, std::span(host));
    return tensor;
  };
  const auto size = static_cast<size_t>(rows);
  std::vector<int32_t> numbers(size);
  std::vector<uint32_t> streams(size), marks(static_cast<size_t>(rows * words));
  for (size_t i = 0; i < size; ++i) {
    numbers[i] = static_cast<int32_t>(i);
    streams[i] = static_cast<uint32_t>(i);
  }
  Random random({.seed = 2});
  for (uint32_t& word : marks) word = uint32_t{1} << (random() % 32);
  upload(seen, std::span<const uint32_t>(marks));
  const SampleTokens op{.logits = scratch,
                        .seen = seen,
                        .slots = place(numbers),
                        .temperature = place(std::vector<float>(size, 0.7F)),
                        .top_p = place(std::vector<float>(size, 0.8F)),
                        .penalty = place(std::vector<float>(size, 1.1F)),
                        .top_k = place(std::vector<int32_t>(size, 20)),
                        .stream_low = place(streams),
                        .stream_high = place(std::vector<uint32_t>(size, 0)),
                        .position = place(std::vector<uint32_t>(size, 7)),
                        .banned = arena.take(DType::i32, {0}),
                        .ban = place(std::vector<int32_t>(size, 0)),
                        .out = arena.take(DType::i32, {rows})};
  const double copy = median_seconds(context, choice.repeats, [&] { run(context, Copy{logits, scratch}); });
  const double both = median_seconds(context, choice.repeats, [&] {
    run(context, Copy{logits, scratch});
    run(context, op);
  });
  json line = head_of_line(ranks, "sampling", choice);
  const double floor = static_cast<double>(logits.bytes()) / ceiling.copy_bytes_per_second;
  line["batch"] = rows;
  line["microseconds"] = 1e6 * (both - copy);
  line["floor_microseconds"] = 1e6 * floor;
  line["ceiling"] = ceiling.to_json();
  line["ratio"] = floor / (both - copy);
  return line;
}

void batch_option(CommandLine& line, BenchChoice& choice) {
  line.add("batch", choice.batch, "rows (sequences)", at_least(1));
}

}  // namespace

int bench_linear_command(const Arguments& arguments) {
  return run_bench(
      "linear",
      "The products of one pass through a model alone, weights not in cache, beside the time that "
      "their bytes and operations need at the rates of a copy and of a large product in the same "
      "run.",
      "--shape smollm2-135m --batch 32", arguments, batch_option, linear);
}

int bench_attention_command(const Arguments& arguments) {
  return run_bench(
      "attention",
      "Attention alone: causal over one packed sequence (training), and of decoding rows over pages.",
      "--shape qwen2-7b --batch 64 --context 4096", arguments,
      [](CommandLine& line, BenchChoice& choice) {
        batch_option(line, choice);
        line.add("context", choice.context, "tokens of every sequence", at_least(1));
        line.add("backward", choice.backward, "the gradient of packed attention too");
        add_engine_options(line, choice.engine);
      },
      attention);
}

int bench_sampling_command(const Arguments& arguments) {
  return run_bench("sampling", "Drawing a token a row with penalty, temperature, top-k and top-p.",
                   "--shape qwen2-7b --batch 256", arguments, batch_option, sampling);
}

}  // namespace sl
