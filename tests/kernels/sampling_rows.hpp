// Rows for SampleTokens, the operation called with them, and the distribution that it draws from by
// definition.
#pragma once

#include <algorithm>
#include <vector>

#include "tests/kernels/on_devices.hpp"

namespace sl::test {

// One row of a call of SampleTokens.
struct Row {
  std::vector<float> logits;
  std::vector<int32_t> seen = {};
  float temperature = 1.0F, top_p = 1.0F, penalty = 1.0F;
  int32_t top_k = 0;
  uint64_t stream = 1;
  uint32_t position = 0;
  bool ban = false;
};

// Draws a token for every row. Rows go through the bitmap in reverse order of slots; those without seen
// tokens have none. Also expects that the bits of what was drawn, and no others, were added to the bitmap.
inline std::vector<int32_t> sample(const Context& context, const std::vector<Row>& rows,
                                   const std::vector<int32_t>& banned = {}, int64_t gap = 0) {
  const int64_t n = static_cast<int64_t>(rows.size()),
                vocabulary = static_cast<int64_t>(rows[0].logits.size());
  const int64_t words = (vocabulary + 31) / 32;
  std::vector<float> logits, temperature, top_p, penalty;
  std::vector<int32_t> slots, top_k, ban, mark_tokens, mark_slots;
  std::vector<uint32_t> low, high, position;
  for (const Row& row : rows) {
    const int32_t slot = static_cast<int32_t>(rows.size() - 1 - slots.size());
    logits.insert(logits.end(), row.logits.begin(), row.logits.end());
    temperature.push_back(row.temperature);
    top_p.push_back(row.top_p);
    penalty.push_back(row.penalty);
    top_k.push_back(row.top_k);
    ban.push_back(row.ban ? 1 : 0);
    low.push_back(static_cast<uint32_t>(row.stream));
    high.push_back(static_cast<uint32_t>(row.stream >> 32));
    position.push_back(row.position);
    slots.push_back(row.seen.empty() ? -1 : slot);
    mark_tokens.insert(mark_tokens.end(), row.seen.begin(), row.seen.end());
    mark_slots.insert(mark_slots.end(), row.seen.size(), slot);
  }
  const Device device = context.device;
  const auto marks = static_cast<int64_t>(mark_tokens.size());
  const Guarded<uint32_t> seen(device, {n, words}, std::vector<uint32_t>(static_cast<size_t>(n * words)));
  const Guarded<int32_t> tokens_t(device, {marks}, mark_tokens), mark_slots_t(device, {marks}, mark_slots);
  run(context, MarkSeen{.tokens = tokens_t, .slots = mark_slots_t, .seen = seen});
  EXPECT_TRUE(seen.surroundings_untouched());
  std::vector<uint32_t> bits = seen.read();
  const Guarded<float> logits_t(device, {n, vocabulary}, logits, gap),
      temperature_t(device, {n}, temperature);
  const Guarded<float> top_p_t(device, {n}, top_p), penalty_t(device, {n}, penalty);
  const Guarded<int32_t> slots_t(device, {n}, slots), top_k_t(device, {n}, top_k), ban_t(device, {n}, ban);
  const Guarded<uint32_t> low_t(device, {n}, low), high_t(device, {n}, high),
      position_t(device, {n}, position);
  const Guarded<int32_t> banned_t(device, {static_cast<int64_t>(banned.size())}, banned), out(device, {n});
  run(context, SampleTokens{.logits = logits_t,
                            .seen = seen,
                            .slots = slots_t,
                            .temperature = temperature_t,
                            .top_p = top_p_t,
                            .penalty = penalty_t,
                            .top_k = top_k_t,
                            .stream_low = low_t,
                            .stream_high = high_t,
                            .position = position_t,
                            .banned = banned_t,
                            .ban = ban_t,
                            .out = out});
  EXPECT_TRUE(logits_t.surroundings_untouched() && out.surroundings_untouched() &&
              seen.surroundings_untouched());
  const std::vector<int32_t> drawn = out.read();
  for (size_t i = 0; i < drawn.size(); ++i) {
    if (slots[i] >= 0 && drawn[i] >= 0)
      bits[static_cast<size_t>(slots[i] * words + drawn[i] / 32)] |= uint32_t{1} << (drawn[i] % 32);
  }
  EXPECT_EQ(seen.read(), bits);
  return drawn;
}

// The distribution after penalty, temperature, top-k, top-p, by sorting everything.
inline std::vector<double> distribution(const Row& row) {
  std::vector<double> logits = in_double(row.logits);
  std::vector<bool> seen(logits.size());
  for (int32_t token : row.seen) seen[static_cast<size_t>(token)] = true;
  std::vector<size_t> order(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const double penalty = seen[i] ? static_cast<double>(row.penalty) : 1.0;
    logits[i] =
        (logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty) / static_cast<double>(row.temperature);
    order[i] = i;
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  size_t kept = order.size();
  if (row.top_k > 0 && static_cast<size_t>(row.top_k) < kept) {
    kept = static_cast<size_t>(row.top_k);
    while (kept < order.size() && logits[order[kept]] == logits[order[kept - 1]]) ++kept;
  }
  double total = 0.0;
  for (size_t i = 0; i < kept; ++i) total += std::exp(logits[order[i]] - logits[order[0]]);
  const double wanted = row.top_p < 1.0F ? static_cast<double>(row.top_p) * total : 1e300;
  std::vector<double> probabilities(logits.size(), 0.0);
  double cumulated = 0.0;
  for (size_t i = 0; i < kept && (i == 0 || cumulated < wanted); ++i) {
    probabilities[order[i]] = std::exp(logits[order[i]] - logits[order[0]]);
    cumulated += probabilities[order[i]];
  }
  for (double& p : probabilities) p /= cumulated;
  return probabilities;
}

}  // namespace sl::test
