#include "rollout/model_step.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>
#include <utility>

#include "kernels/ops.hpp"
#include "kernels/unusable_logits.hpp"

namespace sl {
namespace {

constexpr int64_t mark_chunk = 4096;  // tokens marked by one operation
constexpr int64_t max_banned = 1024;  // end tokens of all requests of a step

int64_t words_of(int64_t vocabulary) { return (vocabulary + 31) / 32; }

InferenceLimits limits_of(const EngineOptions& options, int64_t tokens_per_page) {
  return {.rows = options.max_batch_rows,
          .sequences = options.max_sequences,
          .outputs = options.max_sequences,
          .pages_per_sequence = (options.max_positions + tokens_per_page - 1) / tokens_per_page,
          .tokens_per_page = tokens_per_page};
}

int64_t staging_bytes(const InferenceLimits& limits) {
  const int64_t sampling = 10 * Staging::bytes_for(limits.outputs) + limits.outputs * Staging::bytes_for(1) +
                           Staging::bytes_for(max_banned);
  return PlacedBatch::staging_bytes(std::max(limits.rows, limits.sequences), limits.outputs,
                                    limits.sequences * limits.pages_per_sequence) +
         sampling;
}

// Best tokens of all output rows, and as many scores.
int64_t best_bytes(const EngineOptions& options) {
  return 2 * options.max_sequences * most_best_tokens * size_of(DType::i32);
}

int64_t seen_bytes(const Transformer& model, const EngineOptions& options) {
  return options.max_sequences * words_of(model.config->vocabulary) * size_of(DType::u32);
}

// Rows of a recorded step: small steps of the number, so that little is computed for nothing.
int64_t padded_rows(int64_t rows) { return rows <= 4 ? rows : (rows + 7) / 8 * 8; }

// Such a step is recorded: all rows are decoding, and the same is wanted of their logits.
bool only_decoding(const Batch& batch, const SamplingRows& rows) {
  return batch.rows() == batch.sequences() && batch.rows() == batch.outputs() && rows.ban_lists.empty() &&
         rows.choice_lists.empty() &&
         std::ranges::all_of(rows.best, [&](int32_t wanted) { return wanted == rows.best.front(); });
}

// Adds rows that belong to nobody: no context, nothing stored, drawn greedily from whatever comes out.
void pad(Batch& batch, SamplingRows& rows, int64_t to, int64_t pages_per_sequence) {
  std::vector<int32_t> tables(static_cast<size_t>(to * pages_per_sequence), 0);
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    std::copy_n(batch.page_tables.begin() + s * batch.pages_per_sequence, batch.pages_per_sequence,
                tables.begin() + s * pages_per_sequence);
  }
  batch.page_tables = std::move(tables);
  batch.pages_per_sequence = pages_per_sequence;
  const auto size = static_cast<size_t>(to);
  for (int64_t row = batch.rows(); row < to; ++row) {
    batch.query_offsets.push_back(static_cast<int32_t>(row + 1));
    batch.output_rows.push_back(static_cast<int32_t>(row));
  }
  batch.tokens.resize(size, 0);
  batch.positions.resize(size, 0);
  batch.slots.resize(size, -1);
  batch.context_lengths.resize(size, 0);
  rows.slots.resize(size, -1);
  rows.temperature.resize(size, 0.0F);
  rows.top_p.resize(size, 1.0F);
  rows.penalty.resize(size, 1.0F);
  rows.top_k.resize(size, 0);
  rows.stream_low.resize(size, 0);
  rows.stream_high.resize(size, 0);
  rows.position.resize(size, 0);
  rows.ban.resize(size, -1);
  rows.choice.resize(size, -1);
  rows.best.resize(size, rows.best.front());
}

}  // namespace

struct ModelStep::PlacedSampling {
  PlacedSampling(const SamplingRows& rows, Staging& staging) {
    const auto place = [&](const auto& host) { return staging.place(std::span(host)); };
    slots = place(rows.slots);
    temperature = place(rows.temperature);
    top_p = place(rows.top_p);
    penalty = place(rows.penalty);
    top_k = place(rows.top_k);
    stream_low = place(rows.stream_low);
    stream_high = place(rows.stream_high);
    position = place(rows.position);
    std::vector<int32_t> is_banned(rows.ban.size());
    std::ranges::transform(rows.ban, is_banned.begin(), [](int32_t list) { return list >= 0 ? 1 : 0; });
    ban = staging.place(std::span(std::as_const(is_banned)));
    for (const std::vector<int32_t>& list : rows.ban_lists) ban_lists.push_back(place(list));
    no_ban = staging.place(std::span<const int32_t>());
  }
  Tensor slots, temperature, top_p, penalty, top_k, stream_low, stream_high, position, ban, no_ban;
  std::vector<Tensor> ban_lists;
};

ModelStep::ModelStep(const Transformer& model, const EngineOptions& options, int64_t pages,
                     int64_t tokens_per_page)
    : model_(model),
      options_(options),
      cache_(*model.config, *model.shard, model.context.storage_place(), pages, tokens_per_page),
      inference_(model, limits_of(options, tokens_per_page)),
      seen_buffer_(model.context.device, seen_bytes(model, options), "seen tokens"),
      seen_(seen_buffer_.data(), DType::u32, model.context.device,
            {options.max_sequences, words_of(model.config->vocabulary)}),
      drawn_buffer_(model.context.device, Staging::bytes_for(options.max_sequences), "drawn tokens"),
      drawn_(drawn_buffer_.data(), DType::i32, model.context.device, {options.max_sequences}),
      best_buffer_(model.context.device, best_bytes(options), "best tokens"),
      best_tokens_(best_buffer_.data(), DType::i32, model.context.device,
                   {options.max_sequences, most_best_tokens}),
      best_scores_(static_cast<std::byte*>(best_buffer_.data()) + best_tokens_.bytes(), DType::f32,
                   model.context.device, {options.max_sequences, most_best_tokens}),
      staging_(model.context, staging_bytes(limits_of(options, tokens_per_page)), "step arrays"),
      seen_staging_(model.context,
                    2 * Staging::bytes_for(mark_chunk) + Staging::bytes_for(options.max_sequences),
                    "tokens to mark"),
      host_drawn_(model.context.device, static_cast<int64_t>(most_under_way) * drawn_.bytes(),
                  "drawn tokens"),
      host_best_(model.context.device, static_cast<int64_t>(most_under_way) * best_bytes(options),
                 "best tokens") {
  for (int64_t layer = 0; layer < model.config->layers; ++layer) {
    for (const Tensor& part : {cache_.keys(layer), cache_.values(layer)})
      pages_.push_back(part.reshaped({pages, part.size() / pages}));
  }
}

// Buffers of a step under way are the device's until it is done.
ModelStep::~ModelStep() {
  for (const UnderWay& step : under_way_) step.drawn.wait();
}

int64_t ModelStep::bytes_besides_pages(const Transformer& model, const EngineOptions& options,
                                       int64_t tokens_per_page) {
  const InferenceLimits limits = limits_of(options, tokens_per_page);
  return Inference::bytes(model, limits) + seen_bytes(model, options) + best_bytes(options) +
         staging_bytes(limits);
}

void ModelStep::set_adapters(std::span<const Adapter* const> adapters) {
  require(launched_ == collected_, "adapters are changed while a step is under way");
  inference_.adapters().load(adapters);
}

// A GPU need not wait for the host, unless the ranks of a replica speak through it.
int64_t ModelStep::lag() const {
  return model_.context.device == Device::cuda && model_.tensor_parallel->in_stream() ? 1 : 0;
}

void ModelStep::launch(const Batch& batch, const SamplingRows& rows) {
  for (const AdapterSegment& segment : batch.segments) {
    require(segment.adapter < inference_.adapters().count(), "a request names an unknown adapter");
  }
  require(launched_ - collected_ < most_under_way, "a step is launched while too many are under way");
  UnderWay& step = under_way_[launched_ % most_under_way];
  step.outputs = batch.outputs();
  step.chosen.assign(static_cast<size_t>(step.outputs), -1);
  step.best = rows.best;
  copy_rows(batch.copied_pages, pages_);
  copy_rows(rows.copied_slots, std::span(&seen_, 1));
  mark_seen(rows);
  if (lag() > 0 && only_decoding(batch, rows)) {
    compute_decoding(batch, rows);
  } else {
    compute(batch, rows);
  }
  const auto place = static_cast<int64_t>(launched_ % most_under_way);
  if (step.outputs > 0) {
    send_to_host(model_.context, host_drawn_.data() + place * drawn_.bytes(), drawn_.rows(0, step.outputs));
  }
  if (std::ranges::any_of(step.best, [](int32_t wanted) { return wanted > 0; })) {
    std::byte* const host = host_best_.data() + place * best_bytes(options_);
    send_to_host(model_.context, host, best_tokens_.rows(0, step.outputs));
    send_to_host(model_.context, host + best_tokens_.bytes(), best_scores_.rows(0, step.outputs));
  }
  step.drawn.set(model_.context);
  ++launched_;
}

void ModelStep::collect(StepResult& result) {
  require(collected_ < launched_, "tokens of a step that was not launched");
  const auto place = static_cast<int64_t>(collected_++ % most_under_way);
  const UnderWay& step = under_way_[static_cast<size_t>(place)];
  step.drawn.wait();
  const auto* drawn = reinterpret_cast<const int32_t*>(host_drawn_.data() + place * drawn_.bytes());
  const auto* tokens = reinterpret_cast<const int32_t*>(host_best_.data() + place * best_bytes(options_));
  const auto* scores = reinterpret_cast<const float*>(tokens + best_tokens_.size());
  std::vector<int32_t>& sampled = result.tokens;
  sampled.assign(drawn, drawn + step.outputs);
  result.best.clear();
  for (size_t row = 0; row < sampled.size(); ++row, tokens += most_best_tokens, scores += most_best_tokens) {
    if (step.best[row] > 0) sampled[row] = tokens[0];
    if (step.chosen[row] >= 0) sampled[row] = step.chosen[row];
    if (sampled[row] < 0) throw unusable_logits();
    for (int32_t i = 0; i < step.best[row]; ++i) result.best.push_back({tokens[i], scores[i]});
  }
  // Every rank has drawn the same tokens from the same logits; rank 0's are taken so that nothing, not even
  // different processors in one group, can pull the ranks' schedules apart. Where the next step is under way
  // it is too late for that.
  const std::vector<int32_t> own = sampled;
  model_.tensor_parallel->broadcast(std::as_writable_bytes(std::span(sampled)), 0);
  if (!result.best.empty())
    model_.tensor_parallel->broadcast(std::as_writable_bytes(std::span(result.best)), 0);
  require(lag() == 0 || own == sampled, "the ranks of a replica drew different tokens");
}

// One operation for each stretch of copies that may be done in any order: mostly all of them.
void ModelStep::copy_rows(const RowCopies& copies, std::span<const Tensor> matrices) {
  const auto count = std::ssize(copies.to);
  for (int64_t begin = 0; begin < count;) {
    std::set<int32_t> read, written;
    int64_t end = begin;
    for (; end < std::min(count, begin + mark_chunk); ++end) {
      const auto i = static_cast<size_t>(end);
      if (written.contains(copies.from[i]) || read.contains(copies.to[i]) || written.contains(copies.to[i]))
        break;
      read.insert(copies.from[i]);
      written.insert(copies.to[i]);
    }
    const auto part = [&](const std::vector<int32_t>& rows) {
      return seen_staging_.place(
          std::span(rows).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    };
    seen_staging_.begin();
    const Tensor from = part(copies.from), to = part(copies.to);
    seen_staging_.send();
    for (const Tensor& matrix : matrices) run(model_.context, CopyRows{.from = from, .to = to, .x = matrix});
    begin = end;
  }
}

void ModelStep::mark_seen(const SamplingRows& rows) {
  size_t begin = 0;
  bool cleared = rows.reset_slots.empty();
  while (!cleared || begin < rows.seen_tokens.size()) {
    const size_t count = std::min<size_t>(mark_chunk, rows.seen_tokens.size() - begin);
    seen_staging_.begin();
    const Tensor reset = seen_staging_.place(std::span(rows.reset_slots));
    const Tensor tokens = seen_staging_.place(std::span(rows.seen_tokens).subspan(begin, count));
    const Tensor slots = seen_staging_.place(std::span(rows.seen_slots).subspan(begin, count));
    seen_staging_.send();
    if (!cleared) run(model_.context, ClearRows{.rows = reset, .out = seen_});
    run(model_.context, MarkSeen{.tokens = tokens, .slots = slots, .seen = seen_});
    cleared = true;
    begin += count;
  }
}

// A step of any kind.
void ModelStep::compute(const Batch& batch, const SamplingRows& rows) {
  const ProfilerRange range("mixed step");
  staging_.begin();
  const PlacedBatch placed(batch, inference_.adapters(), staging_);
  const PlacedSampling sampling(rows, staging_);
  staging_.send();
  run(model_.context, FillInTokens{.tokens = placed.tokens, .drawn = drawn_});
  const Tensor logits = inference_.forward(placed, cache_);
  if (rows.slots.empty()) return;
  // before drawing, which spoils the logits
  choose(logits, rows, under_way_[launched_ % most_under_way].chosen);
  draw(logits, sampling, rows);
}

// A step of decoding rows only, padded to one of few sizes, and from its second time on recorded.
void ModelStep::compute_decoding(const Batch& batch, const SamplingRows& rows) {
  const ProfilerRange range("decoding step");
  Batch padded = batch;
  SamplingRows padded_sampling = rows;
  const int64_t most_rows = std::min(options_.max_batch_rows, options_.max_sequences);
  const int64_t size = std::max(std::min(padded_rows(batch.rows()), most_rows), batch.rows());
  const int64_t most_pages = limits_of(options_, cache_.tokens_per_page()).pages_per_sequence;
  const auto pages = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(batch.pages_per_sequence)));
  pad(padded, padded_sampling, size, std::min(pages, most_pages));
  staging_.begin();
  const PlacedBatch placed(padded, inference_.adapters(), staging_);
  const PlacedSampling sampling(padded_sampling, staging_);
  staging_.send();
  const auto operations = [&] {
    run(model_.context, FillInTokens{.tokens = placed.tokens, .drawn = drawn_});
    draw(inference_.forward(placed, cache_), sampling, padded_sampling);
  };
  const auto [known, first_time] =
      graphs_.try_emplace({size, padded.pages_per_sequence, placed.adapters, padded_sampling.best.front()});
  if (first_time) return operations();
  if (!known->second) known->second = Graph::record(model_.context, operations);
  known->second->replay(model_.context);
}

// Few rows ever choose, so their logits come to the host.
void ModelStep::choose(const Tensor& logits, const SamplingRows& rows, std::vector<int32_t>& chosen) const {
  for (size_t row = 0; row < rows.choice.size(); ++row) {
    if (rows.choice[row] < 0) continue;
    const auto index = static_cast<int64_t>(row);
    const std::vector<float> values = download<float>(logits.rows(index, index + 1));
    const double largest = *std::ranges::max_element(values);
    double best = -1.0;
    for (const std::vector<int32_t>& group : rows.choice_lists[static_cast<size_t>(rows.choice[row])]) {
      double sum = 0.0;
      for (const int32_t token : group) sum += std::exp(values[static_cast<size_t>(token)] - largest);
      if (sum > best) {
        best = sum;
        chosen[row] = group.front();
      }
    }
  }
}

// One operation, unless rows must not draw from different lists of tokens, or some want their best ones: then
// one for each stretch of rows that is alike in that.
void ModelStep::draw(const Tensor& logits, const PlacedSampling& sampling, const SamplingRows& rows) {
  const size_t count = rows.ban.size();
  for (size_t begin = 0; begin < count;) {
    int32_t list = -1;
    size_t end = begin;
    const bool ranks = rows.best[begin] > 0;
    int32_t most = 0;
    for (; end < count && (list < 0 || rows.ban[end] < 0 || rows.ban[end] == list); ++end) {
      if ((rows.best[end] > 0) != ranks) break;
      list = std::max(list, rows.ban[end]);
      most = std::max(most, rows.best[end]);
    }
    const auto part = [&](const Tensor& whole) {
      return whole.rows(static_cast<int64_t>(begin), static_cast<int64_t>(end));
    };
    const Tensor banned = list < 0 ? sampling.no_ban : sampling.ban_lists[static_cast<size_t>(list)];
    if (ranks) {
      run(model_.context, BestTokens{.logits = part(logits),
                                     .seen = seen_,
                                     .slots = part(sampling.slots),
                                     .penalty = part(sampling.penalty),
                                     .banned = banned,
                                     .ban = part(sampling.ban),
                                     .tokens = part(best_tokens_).columns(0, most),
                                     .scores = part(best_scores_).columns(0, most)});
      begin = end;
      continue;
    }
    run(model_.context, SampleTokens{.logits = part(logits),
                                     .seen = seen_,
                                     .slots = part(sampling.slots),
                                     .temperature = part(sampling.temperature),
                                     .top_p = part(sampling.top_p),
                                     .penalty = part(sampling.penalty),
                                     .top_k = part(sampling.top_k),
                                     .stream_low = part(sampling.stream_low),
                                     .stream_high = part(sampling.stream_high),
                                     .position = part(sampling.position),
                                     .banned = banned,
                                     .ban = part(sampling.ban),
                                     .out = part(drawn_)});
    begin = end;
  }
}

}  // namespace sl
