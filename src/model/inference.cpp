#include <algorithm>
#include <cmath>

#include "kernels/ops.hpp"
#include "model/transformer.hpp"

namespace sl {
namespace {

// Activations of one batch; the arena is sized by the same declarations. The outputs of every product are
// followed by the `rank` numbers that each of its projections has for adapters.
struct Activations {
  Activations(const ModelConfig& config, const Shard& shard, DType storage, int64_t rows, int64_t rank,
              auto&& take) {
    const int64_t queries = shard.query_heads.size() * config.head_dim;
    residual = take(DType::f32, {rows, config.hidden});
    delta = take(storage, {rows, config.hidden + rank});
    normed = take(storage, {rows, config.hidden});
    qkv = take(storage, {rows, queries + 2 * shard.key_heads.size() * config.head_dim + 3 * rank});
    attention = take(storage, {rows, queries});
    gate_up = take(storage, {rows, 2 * (shard.ffn.size() + rank)});
    ffn = take(storage, {rows, shard.ffn.size()});
  }
  Tensor residual, delta, normed, qkv, attention, gate_up, ffn;
};

int64_t largest_vocabulary_share(const ModelConfig& config, int tp) {
  int64_t largest = 0;
  for (int rank = 0; rank < tp; ++rank)
    largest = std::max(largest, vocabulary_share(config.vocabulary, tp, rank).size());
  return largest;
}

AttentionWorkspace workspace_of(const Transformer& model, int64_t rows, int64_t sequences,
                                int64_t positions) {
  return attention_workspace(model.context.device, rows, sequences, positions,
                             model.shard->query_heads.size(), model.shard->key_heads.size(),
                             model.config->head_dim);
}

int64_t arena_bytes(const Transformer& model, const InferenceLimits& limits) {
  const ModelConfig& config = *model.config;
  const DType storage = model.context.storage;
  int64_t bytes = 0;
  const auto count = [&](DType dtype, std::initializer_list<int64_t> shape) {
    bytes += Arena::bytes_for(dtype, shape);
    return Tensor(nullptr, dtype, model.context.device, shape);
  };
  const int64_t rank = model.parameters->adapter_rank();
  const Activations activations(config, *model.shard, storage, limits.rows, rank, count);
  const AttentionWorkspace workspace =
      workspace_of(model, limits.rows, limits.sequences, limits.pages_per_sequence * limits.tokens_per_page);
  count(DType::i32, {workspace.plan});
  count(DType::f32, {workspace.scratch});
  count(DType::f32, {limits.outputs, config.hidden});
  count(storage, {limits.outputs, config.hidden + rank});
  count(storage, {limits.outputs, config.hidden});
  const int tp = model.shard->tp;
  count(DType::f32, {limits.outputs, config.vocabulary});
  if (tp > 1) {
    count(DType::f32, {limits.outputs, largest_vocabulary_share(config, tp)});
    count(DType::f32, {tp, limits.outputs, largest_vocabulary_share(config, tp)});
  }
  return bytes;
}

}  // namespace

KvCache::KvCache(const ModelConfig& config, const Shard& shard, Placement place, int64_t pages,
                 int64_t tokens_per_page)
    : buffer_(place.device, pages * bytes_per_page(config, shard, place.dtype, tokens_per_page), "KV pages"),
      pages_(pages),
      tokens_per_page_(tokens_per_page) {
  const int64_t heads = shard.key_heads.size();
  const int64_t bytes = pages * heads * tokens_per_page * config.head_dim * size_of(place.dtype);
  char* next = static_cast<char*>(buffer_.data());
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    for (std::vector<Tensor>* part : {&keys_, &values_}) {
      part->emplace_back(next, place.dtype, place.device,
                         std::initializer_list<int64_t>{pages, heads, tokens_per_page, config.head_dim});
      next += bytes;
    }
  }
}

int64_t KvCache::bytes_per_page(const ModelConfig& config, const Shard& shard, DType dtype,
                                int64_t tokens_per_page) {
  return 2 * config.layers * shard.key_heads.size() * tokens_per_page * config.head_dim * size_of(dtype);
}

Tensor KvCache::keys(int64_t layer) const { return keys_[static_cast<size_t>(layer)]; }
Tensor KvCache::values(int64_t layer) const { return values_[static_cast<size_t>(layer)]; }

PlacedBatch::PlacedBatch(const Batch& batch, const ServedAdapters& served, Staging& staging) {
  const auto place = [&](const std::vector<int32_t>& host) { return staging.place(std::span(host)); };
  tokens = place(batch.tokens);
  positions = place(batch.positions);
  slots = place(batch.slots);
  query_offsets = place(batch.query_offsets);
  context_lengths = place(batch.context_lengths);
  page_tables = place(batch.page_tables).reshaped({batch.sequences(), batch.pages_per_sequence});
  output_rows = place(batch.output_rows);
  std::vector<int32_t> range_of_rows(static_cast<size_t>(2 * batch.rows()), 0), range_of_outputs;
  for (const AdapterSegment& segment : batch.segments) {
    const auto range = served.range(segment.adapter);
    for (auto row = static_cast<size_t>(segment.row_begin); row < static_cast<size_t>(segment.row_end); ++row)
      std::ranges::copy(range, range_of_rows.begin() + static_cast<int64_t>(2 * row));
  }
  for (const int32_t row : batch.output_rows) {
    for (const int32_t i : {2 * row, 2 * row + 1})
      range_of_outputs.push_back(range_of_rows[static_cast<size_t>(i)]);
  }
  ranges = place(range_of_rows).reshaped({batch.rows(), 2});
  output_ranges = place(range_of_outputs).reshaped({batch.outputs(), 2});
  adapters = !batch.segments.empty();
  for (size_t s = 0; s + 1 < batch.query_offsets.size(); ++s) {
    longest_query = std::max<int64_t>(longest_query, batch.query_offsets[s + 1] - batch.query_offsets[s]);
  }
}

int64_t PlacedBatch::staging_bytes(int64_t rows, int64_t outputs, int64_t page_entries) {
  return 5 * Staging::bytes_for(rows + 1) + Staging::bytes_for(2 * rows) + Staging::bytes_for(outputs) +
         Staging::bytes_for(2 * outputs) + Staging::bytes_for(page_entries);
}

Inference::Inference(const Transformer& model, const InferenceLimits& limits)
    : model_(model),
      limits_(limits),
      adapters_(model),
      arena_(model.context.device, arena_bytes(model, limits), "activations") {
  const std::vector<float> frequencies = model.config->rope_frequencies();
  const auto pairs = static_cast<int64_t>(frequencies.size());
  constants_ = Buffer(model.context.device, pairs * size_of(DType::f32), "constants");
  frequencies_ = Tensor(constants_.data(), DType::f32, model.context.device, {pairs});
  upload(frequencies_, std::span(frequencies));
}

int64_t Inference::bytes(const Transformer& model, const InferenceLimits& limits) {
  return arena_bytes(model, limits) + ServedAdapters::bytes(model);
}

Tensor Inference::forward(const PlacedBatch& batch, const KvCache& cache) {
  arena_.release(0);
  return whole_logits(hidden_states(batch, cache));
}

Tensor Inference::forward(const Batch& batch, const KvCache& cache) {
  const int64_t bytes = PlacedBatch::staging_bytes(batch.rows(), batch.outputs(),
                                                   static_cast<int64_t>(batch.page_tables.size()));
  Staging staging(model_.context, bytes, "batch");
  const PlacedBatch placed(batch, adapters_, staging);
  staging.send();
  const Tensor logits = forward(placed, cache);
  synchronize(model_.context);
  return logits;
}

// Final hidden states of the output rows, normalised: (R, H).
Tensor Inference::hidden_states(const PlacedBatch& batch, const KvCache& cache) {
  const Context& context = model_.context;
  const ModelConfig& config = *model_.config;
  const Shard& shard = *model_.shard;
  const Parameters& weights = *model_.parameters;
  const int64_t rows = batch.tokens.size();
  // Numbers for adapters behind the outputs of a product, each projection's; none in a batch that uses none,
  // unless a row's bits must not depend on its neighbours: a wider product may split its sums otherwise.
  const int64_t rank = batch.adapters || context.deterministic ? adapters_.rank() : 0;
  const Activations a(
      config, shard, context.storage, rows, rank,
      [&](DType dtype, std::initializer_list<int64_t> shape) { return arena_.take(dtype, shape); });
  const auto low_rank = [&](const Tensor& product, int64_t outputs, const Tensor& b, const Tensor& ranges) {
    if (rank == 0) return LowRank{};
    return LowRank{.low = product.columns(outputs, product.columns()), .b = b, .ranges = ranges};
  };
  // The plan of attention is the same for all layers.
  const AttentionWorkspace workspace = workspace_of(model_, rows, batch.context_lengths.size(),
                                                    batch.page_tables.columns() * limits_.tokens_per_page);
  const Tensor plan = arena_.take(DType::i32, {workspace.plan});
  const Tensor attention_scratch = arena_.take(DType::f32, {workspace.scratch});
  run(context, PlanPagedAttention{.query_offsets = batch.query_offsets,
                                  .context_lengths = batch.context_lengths,
                                  .query_heads = shard.query_heads.size(),
                                  .key_heads = shard.key_heads.size(),
                                  .plan = plan});

  run(context, Embedding{batch.tokens, weights.embedding, shard.vocabulary.begin, a.residual});
  model_.tensor_parallel->all_reduce_sum(a.residual);
  const int64_t queries = shard.query_heads.size() * config.head_dim;
  const int64_t keys = shard.key_heads.size() * config.head_dim;
  const int64_t ffn = shard.ffn.size();
  // The block before's output, not yet in the residual.
  Tensor delta;
  LowRank delta_adapters;
  const auto next_delta = [&](const Tensor& b) {
    model_.tensor_parallel->all_reduce_sum(a.delta);
    delta = a.delta.columns(0, config.hidden);
    delta_adapters = low_rank(a.delta, config.hidden, b, batch.ranges);
  };
  for (int64_t i = 0; i < config.layers; ++i) {
    const LayerWeights& layer = weights.layers[static_cast<size_t>(i)];
    const LayerWeights::WithRoom& wide = layer.with_room;
    const ServedAdapters::Layer b = rank == 0 ? ServedAdapters::Layer{} : adapters_.layer(i);
    // Attention. The previous block's output joins the residual here, in the same pass as the norm.
    run(context, AddRmsNorm{.residual = a.residual,
                            .delta = delta,
                            .weight = layer.attention_norm,
                            .epsilon = config.rms_epsilon,
                            .out = a.normed,
                            .adapters = delta_adapters});
    run(context, Gemm{.a = a.normed,
                      .b = wide.qkv.rows(0, a.qkv.columns()),
                      .out = a.qkv,
                      .transpose_b = true,
                      .bias = config.qkv_bias ? wide.qkv_bias.rows(0, a.qkv.columns()) : Tensor()});
    const Tensor qkv = a.qkv.columns(0, queries + 2 * keys);
    run(context, RopeStoreKv{.qkv = qkv,
                             .positions = batch.positions,
                             .frequencies = frequencies_,
                             .magnitude = config.rope_magnitude(),
                             .slots = batch.slots,
                             .key_pages = cache.keys(i),
                             .value_pages = cache.values(i),
                             .adapters = low_rank(a.qkv, qkv.columns(), b.qkv, batch.ranges)});
    run(context, PagedAttention{.qkv = qkv,
                                .key_pages = cache.keys(i),
                                .value_pages = cache.values(i),
                                .query_offsets = batch.query_offsets,
                                .context_lengths = batch.context_lengths,
                                .page_tables = batch.page_tables,
                                .query_heads = shard.query_heads.size(),
                                .longest_query = batch.longest_query,
                                .scale = 1.0F / std::sqrt(static_cast<float>(config.head_dim)),
                                .out = a.attention,
                                .plan = plan,
                                .scratch = attention_scratch});
    run(context, Gemm{.a = a.attention,
                      .b = wide.output.rows(0, a.delta.columns()),
                      .out = a.delta,
                      .transpose_b = true});
    next_delta(b.output);
    // Feed-forward.
    run(context, AddRmsNorm{.residual = a.residual,
                            .delta = delta,
                            .weight = layer.ffn_norm,
                            .epsilon = config.rms_epsilon,
                            .out = a.normed,
                            .adapters = delta_adapters});
    run(context, Gemm{.a = a.normed,
                      .b = wide.gate_up.rows(0, a.gate_up.columns()),
                      .out = a.gate_up,
                      .transpose_b = true});
    run(context, SwiGlu{.gate_up = a.gate_up.columns(0, 2 * ffn),
                        .out = a.ffn,
                        .adapters = low_rank(a.gate_up, 2 * ffn, b.gate_up, batch.ranges)});
    run(context,
        Gemm{.a = a.ffn, .b = wide.down.rows(0, a.delta.columns()), .out = a.delta, .transpose_b = true});
    next_delta(b.down);
  }
  const int64_t outputs = batch.output_rows.size();
  const Tensor residual = arena_.take(DType::f32, {outputs, config.hidden});
  const Tensor last_delta = arena_.take(context.storage, {outputs, a.delta.columns()});
  const Tensor hidden = arena_.take(context.storage, {outputs, config.hidden});
  run(context, GatherRows{a.residual, batch.output_rows, residual});
  run(context, GatherRows{a.delta, batch.output_rows, last_delta});
  run(context,
      AddRmsNorm{.residual = residual,
                 .delta = last_delta.columns(0, config.hidden),
                 .weight = weights.final_norm,
                 .epsilon = config.rms_epsilon,
                 .out = hidden,
                 .adapters = low_rank(last_delta, config.hidden, delta_adapters.b, batch.output_ranges)});
  return hidden;
}

// Logits over the whole vocabulary: every rank computes its rows of the head, and all receive all.
Tensor Inference::whole_logits(const Tensor& hidden) {
  const Context& context = model_.context;
  const Shard& shard = *model_.shard;
  const int64_t outputs = hidden.rows();
  const Tensor logits = arena_.take(DType::f32, {outputs, model_.config->vocabulary});
  if (shard.tp == 1) {
    run(context, Gemm{.a = hidden, .b = model_.parameters->head, .out = logits, .transpose_b = true});
    return logits;
  }
  const int64_t width = largest_vocabulary_share(*model_.config, shard.tp);
  const Tensor part = arena_.take(DType::f32, {outputs, width});
  const Tensor parts = arena_.take(DType::f32, {shard.tp, outputs, width});
  run(context, Gemm{.a = hidden,
                    .b = model_.parameters->head,
                    .out = part.columns(0, shard.vocabulary.size()),
                    .transpose_b = true});
  model_.tensor_parallel->all_gather(part, parts);
  for (int rank = 0; rank < shard.tp; ++rank) {
    const Range share = vocabulary_share(model_.config->vocabulary, shard.tp, rank);
    run(context, Copy{parts.at(rank).columns(0, share.size()), logits.columns(share.begin, share.end)});
  }
  return logits;
}

}  // namespace sl
