#include "rollout/model_step.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/ops.hpp"

namespace sl {
namespace {

constexpr int64_t mark_chunk = 4096;  // tokens marked by one operation
constexpr int64_t max_banned = 1024;  // end tokens of one request

int64_t arena_bytes(const EngineOptions& options) {
  int64_t bytes = 2 * Arena::bytes_for(DType::i32, {mark_chunk});
  bytes += Arena::bytes_for(DType::i32, {max_banned});
  // slots, temperature, top_p, penalty, top_k, two halves of the stream, position, ban, out
  return bytes + 10 * Arena::bytes_for(DType::i32, {options.max_sequences});
}

int64_t page_entries(const EngineOptions& options, int64_t tokens_per_page) {
  return options.max_sequences * ((options.max_positions + tokens_per_page - 1) / tokens_per_page);
}

int64_t words_of(int64_t vocabulary) { return (vocabulary + 31) / 32; }

}  // namespace

ModelStep::ModelStep(const Transformer& model, const EngineOptions& options, int64_t pages,
                     int64_t tokens_per_page)
    : model_(model),
      cache_(*model.config, *model.shard, model.context.device, pages, tokens_per_page),
      inference_(model, options.max_batch_rows, options.max_sequences,
                 page_entries(options, tokens_per_page)),
      seen_buffer_(model.context.device,
                   options.max_sequences * words_of(model.config->vocabulary) * size_of(DType::u32),
                   "seen tokens"),
      seen_(seen_buffer_.data(), DType::u32, model.context.device,
            {options.max_sequences, words_of(model.config->vocabulary)}),
      arena_(model.context.device, arena_bytes(options), "sampling arrays") {}

void ModelStep::run(const Batch& batch, const SamplingRows& rows, std::vector<int32_t>& sampled) {
  for (const AdapterSegment& segment : batch.segments) {
    require(segment.adapter < static_cast<int32_t>(adapters_.size()), "a request names an unknown adapter");
  }
  const Tensor logits = inference_.forward(batch, cache_, adapters_);
  mark_seen(rows);
  sampled.assign(rows.slots.size(), 0);
  if (sampled.empty()) return;
  choose(logits, rows, sampled);  // before sampling, which spoils the logits
  sample(logits, rows, sampled);
}

// Few rows ever choose, so their logits come to the host.
void ModelStep::choose(const Tensor& logits, const SamplingRows& rows, std::vector<int32_t>& sampled) const {
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
        sampled[row] = group.front();
      }
    }
  }
}

template <typename T>
Tensor ModelStep::place(std::span<const T> host) {
  const Tensor tensor = arena_.take(dtype_of<T>(), {static_cast<int64_t>(host.size())});
  upload(tensor, host);
  return tensor;
}

void ModelStep::mark_seen(const SamplingRows& rows) {
  const std::vector<uint32_t> zeros(static_cast<size_t>(seen_.columns()), 0);
  for (const int32_t slot : rows.reset_slots) upload(seen_.rows(slot, slot + 1), std::span(zeros));
  for (size_t begin = 0; begin < rows.seen_tokens.size(); begin += mark_chunk) {
    const size_t count = std::min<size_t>(mark_chunk, rows.seen_tokens.size() - begin);
    arena_.release(0);
    const Tensor tokens = place(std::span(rows.seen_tokens).subspan(begin, count));
    const Tensor slots = place(std::span(rows.seen_slots).subspan(begin, count));
    sl::run(model_.context, MarkSeen{.tokens = tokens, .slots = slots, .seen = seen_});
  }
}

// One operation, unless rows must not draw from different lists of tokens: then one for each stretch of rows
// that shares a list.
void ModelStep::sample(const Tensor& logits, const SamplingRows& rows, std::vector<int32_t>& sampled) {
  arena_.release(0);
  const Tensor slots = place(std::span(rows.slots));
  const Tensor temperature = place(std::span(rows.temperature));
  const Tensor top_p = place(std::span(rows.top_p));
  const Tensor penalty = place(std::span(rows.penalty));
  const Tensor top_k = place(std::span(rows.top_k));
  const Tensor stream_low = place(std::span(rows.stream_low));
  const Tensor stream_high = place(std::span(rows.stream_high));
  const Tensor position = place(std::span(rows.position));
  std::vector<int32_t> is_banned(rows.ban.size());
  std::ranges::transform(rows.ban, is_banned.begin(), [](int32_t list) { return list >= 0 ? 1 : 0; });
  const Tensor ban = place(std::span(std::as_const(is_banned)));
  const Tensor out = arena_.take(DType::i32, {static_cast<int64_t>(rows.slots.size())});

  const int64_t before_lists = arena_.mark();
  const size_t count = rows.ban.size();
  for (size_t begin = 0; begin < count;) {
    int32_t list = -1;
    size_t end = begin;
    for (; end < count && (list < 0 || rows.ban[end] < 0 || rows.ban[end] == list); ++end) {
      list = std::max(list, rows.ban[end]);
    }
    arena_.release(before_lists);
    const Tensor banned = list < 0 ? place(std::span<const int32_t>())
                                   : place(std::span(rows.ban_lists[static_cast<size_t>(list)]));
    const auto part = [&](const Tensor& whole) {
      return whole.rows(static_cast<int64_t>(begin), static_cast<int64_t>(end));
    };
    sl::run(model_.context, Sample{.logits = part(logits),
                                   .seen = seen_,
                                   .slots = part(slots),
                                   .temperature = part(temperature),
                                   .top_p = part(top_p),
                                   .penalty = part(penalty),
                                   .top_k = part(top_k),
                                   .stream_low = part(stream_low),
                                   .stream_high = part(stream_high),
                                   .position = part(position),
                                   .banned = banned,
                                   .ban = part(ban),
                                   .out = part(out)});
    begin = end;
  }
  std::vector<int32_t> drawn(sampled.size());
  copy_to_host(drawn.data(), out, out.bytes());
  for (size_t i = 0; i < sampled.size(); ++i) {
    if (rows.choice[i] < 0) sampled[i] = drawn[i];
  }
  // Every rank has drawn the same tokens from the same logits; rank 0's are taken so that nothing, not even
  // different processors in one group, can pull the ranks' schedules apart.
  model_.tensor_parallel->broadcast(std::as_writable_bytes(std::span(sampled)), 0);
}

}  // namespace sl
