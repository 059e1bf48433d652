#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "core/rng.hpp"
#include "kernels/ops.hpp"
#include "tests/support.hpp"

namespace sl::test {
namespace {

using SamplingTest = OnDevices;
SL_ON_DEVICES(SamplingTest);

// One row of a call of Sample.
struct Row {
  std::vector<float> logits;
  std::vector<int32_t> seen = {};
  float temperature = 1.0F, top_p = 1.0F, penalty = 1.0F;
  int32_t top_k = 0;
  uint64_t stream = 1;
  uint32_t position = 0;
  bool ban = false;
};

// Rows go through the bitmap in reverse order of slots; those without seen tokens have none.
std::vector<int32_t> sample(const Context& context, const std::vector<Row>& rows,
                            const std::vector<int32_t>& banned = {}) {
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
  const Guarded<float> logits_t(device, {n, vocabulary}, logits), temperature_t(device, {n}, temperature);
  const Guarded<float> top_p_t(device, {n}, top_p), penalty_t(device, {n}, penalty);
  const Guarded<int32_t> slots_t(device, {n}, slots), top_k_t(device, {n}, top_k), ban_t(device, {n}, ban);
  const Guarded<uint32_t> low_t(device, {n}, low), high_t(device, {n}, high),
      position_t(device, {n}, position);
  const Guarded<int32_t> banned_t(device, {static_cast<int64_t>(banned.size())}, banned), out(device, {n});
  run(context, Sample{.logits = logits_t,
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
  EXPECT_TRUE(logits_t.surroundings_untouched() && out.surroundings_untouched());
  return out.read();
}

// The distribution after penalty, temperature, top-k, top-p, by sorting everything.
std::vector<double> distribution(const Row& row) {
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

// Draws at many positions must be the inverse of the cumulated probabilities there, but for uniform numbers
// so near to a border that rounding decides.
void expect_inverse_of_cumulated(const Context& context, Row row, const std::vector<double>& probabilities,
                                 uint32_t draws) {
  std::vector<Row> rows;
  for (row.position = 0; row.position < draws; ++row.position) rows.push_back(row);
  const auto drawn = sample(context, rows);
  uint32_t compared = 0;
  for (uint32_t position = 0; position < draws; ++position) {
    const double uniform = static_cast<double>(uniform_at(row.stream, position));
    double cumulated = 0.0;
    bool near_border = false;
    int32_t expected = -1;
    for (size_t token = 0; token < probabilities.size(); ++token) {
      if (probabilities[token] == 0.0) continue;
      cumulated += probabilities[token];
      near_border = near_border || std::abs(cumulated - uniform) < 1e-5;
      if (expected < 0 && cumulated > uniform) expected = static_cast<int32_t>(token);
    }
    ASSERT_GT(probabilities[static_cast<size_t>(drawn[position])], 0.0) << "a filtered token was drawn";
    if (near_border) continue;
    ++compared;
    ASSERT_EQ(drawn[position], expected) << "position " << position;
  }
  EXPECT_GT(compared, draws * 9 / 10);
}

TEST_P(SamplingTest, DrawsFromTheRecordedDistributions) {
  std::ifstream file(std::string(SELFLENGTHEN_SOURCE_DIR) + "/tests/reference/sampling.json");
  const auto recorded = nlohmann::json::parse(file);
  ASSERT_GT(recorded.at("rows").size(), 20U);
  for (const auto& entry : recorded.at("rows")) {
    Row row{.logits = entry.at("logits"), .seen = entry.at("seen"), .stream = 77};
    row.temperature = entry.at("temperature");
    row.top_p = entry.at("top_p");
    row.top_k = entry.at("top_k");
    row.penalty = entry.at("repetition_penalty");
    expect_inverse_of_cumulated(context(), row, entry.at("probabilities").get<std::vector<double>>(), 64);
  }
}

std::vector<Row> filter_cases() {
  const auto logits = random_floats(1000, 3, 2.0F);
  std::vector<int32_t> seen;
  for (int32_t token = 0; token < 1000; token += 7) seen.push_back(token);
  return {{.logits = logits},
          {.logits = logits, .seen = seen, .temperature = 0.7F, .top_p = 0.8F, .penalty = 1.1F, .top_k = 20},
          {.logits = logits, .top_k = 1},
          {.logits = logits, .temperature = 2.0F, .top_k = 300},
          {.logits = logits, .top_k = 1000},
          {.logits = logits, .top_k = 5000},
          {.logits = logits, .top_p = 0.9F},
          {.logits = logits, .top_p = 1e-6F},
          {.logits = logits, .temperature = 50.0F, .top_p = 0.95F},
          {.logits = logits, .seen = seen, .top_p = 0.5F, .penalty = 3.0F, .top_k = 999},
          {.logits = random_floats(31, 4), .temperature = 0.5F, .top_p = 0.7F, .top_k = 9}};
}

TEST_P(SamplingTest, MatchesTheSortedDefinition) {
  for (const Row& row : filter_cases()) {
    SCOPED_TRACE(testing::Message() << "k " << row.top_k << " p " << row.top_p << " t " << row.temperature);
    expect_inverse_of_cumulated(context(), row, distribution(row), 200);
  }
}

TEST_P(SamplingTest, FrequenciesFollowTheDistribution) {
  Row row{.logits = random_floats(200, 10),
          .seen = {3, 5, 8, 13},
          .temperature = 0.7F,
          .top_p = 0.8F,
          .penalty = 1.1F,
          .top_k = 20,
          .stream = 12345};
  const auto probabilities = distribution(row);
  constexpr uint32_t draws = 20000;
  std::vector<Row> rows;
  for (row.position = 0; row.position < draws; ++row.position) rows.push_back(row);
  std::map<int32_t, double> counts;
  for (int32_t token : sample(context(), rows)) counts[token] += 1.0;
  double chi_square = 0.0;
  int freedom = -1;
  for (size_t token = 0; token < probabilities.size(); ++token) {
    const double expected = draws * probabilities[token];
    if (expected == 0.0) continue;
    ++freedom;
    const double difference = counts[static_cast<int32_t>(token)] - expected;
    chi_square += difference * difference / expected;
  }
  // Five standard deviations of chi-square above its mean; the seed is fixed.
  ASSERT_GT(freedom, 8);
  EXPECT_LT(chi_square, freedom + 5.0 * std::sqrt(2.0 * freedom));
}

TEST_P(SamplingTest, KeepsEqualsOfTheKthLogit) {
  Row row{.logits = std::vector<float>(200, -1.0F), .top_k = 2};
  for (size_t token : {5U, 70U, 150U}) row.logits[token] = 1.0F;
  std::vector<Row> rows;
  for (row.position = 0; row.position < 100; ++row.position) rows.push_back(row);
  std::map<int32_t, int> counts;
  for (int32_t token : sample(context(), rows)) ++counts[token];
  EXPECT_EQ(counts.size(), 3U);
  EXPECT_EQ(counts.count(5) + counts.count(70) + counts.count(150), 3U);
}

TEST_P(SamplingTest, TemperatureZeroTakesTheFirstLargestAfterThePenalty) {
  Row row{.logits = random_floats(300, 1), .temperature = 0.0F};
  row.logits[100] = row.logits[200] = 9.0F;
  Row penalized = row;
  penalized.seen = {100};
  penalized.penalty = 1.5F;
  Row banned = penalized;
  banned.ban = true;
  EXPECT_EQ(sample(context(), {row, penalized}), (std::vector<int32_t>{100, 200}));
  const auto drawn = sample(context(), {banned, row}, {100, 200});
  EXPECT_NE(drawn[0], 100);
  EXPECT_NE(drawn[0], 200);
  EXPECT_EQ(drawn[1], 100) << "a row that bans nothing";
}

TEST_P(SamplingTest, PenaltyLowersNegativeLogitsToo) {
  Row row{.logits = {-1.0F, -1.4F}, .seen = {0}, .temperature = 0.0F, .penalty = 1.3F};
  EXPECT_EQ(sample(context(), {row}), std::vector<int32_t>{0});
  row.penalty = 1.5F;
  EXPECT_EQ(sample(context(), {row}), std::vector<int32_t>{1});
}

TEST_P(SamplingTest, ADrawDependsOnItsAddressAlone) {
  std::vector<Row> rows;
  for (uint32_t i = 0; i < 12; ++i)
    rows.push_back({.logits = random_floats(500, i),
                    .seen = {1, 2},
                    .top_p = 0.9F,
                    .penalty = 1.1F,
                    .top_k = static_cast<int32_t>(i % 3 * 30),
                    .stream = (uint64_t{i} << 40) + 5,
                    .position = i});
  const auto forward = sample(context(), rows);
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(sample(context(), {rows[i]})[0], forward[i]);
  std::reverse(rows.begin(), rows.end());
  auto backward = sample(context(), rows);
  std::reverse(backward.begin(), backward.end());
  EXPECT_EQ(backward, forward);
  // Other halves of the stream's name, and other positions, are other draws.
  Row row{.logits = std::vector<float>(500, 0.0F)};
  std::vector<Row> others = {row, row, row, row};
  others[1].stream = row.stream + 1;
  others[2].stream = row.stream + (uint64_t{1} << 32);
  others[3].position = 1;
  auto drawn = sample(context(), others);
  std::sort(drawn.begin(), drawn.end());
  EXPECT_EQ(std::unique(drawn.begin(), drawn.end()), drawn.end());
}

TEST_P(SamplingTest, RefusesLogitsThatAreNotNumbers) {
  Row good{.logits = random_floats(100, 1)}, nan = good, nothing = good;
  nan.logits[70] = NAN;
  nothing.logits.assign(100, -INFINITY);
  EXPECT_THROW(sample(context(), {good, nan}), BugError);
  nan.temperature = 0.0F;
  EXPECT_THROW(sample(context(), {nan}), BugError);
  EXPECT_THROW(sample(context(), {nothing}), BugError);
  EXPECT_THROW(sample(context(), {good}, {100}), BugError) << "a banned token outside the vocabulary";
}

TEST_P(SamplingTest, MarkSeenSetsBitsAndSkipsNegativeSlots) {
  const Guarded<uint32_t> seen(device(), {2, 3}, {0, 1, 0, 0, 0, 4});
  const Guarded<int32_t> tokens(device(), {5}, {0, 31, 64, 95, 1}), slots(device(), {5}, {1, 1, 0, 1, -1});
  run(context(), MarkSeen{.tokens = tokens, .slots = slots, .seen = seen});
  EXPECT_EQ(seen.read(), (std::vector<uint32_t>{0, 1, 1, 0x80000001U, 0, 0x80000004U}));
  EXPECT_TRUE(seen.surroundings_untouched());
  const Guarded<int32_t> outside(device(), {5}, {0, 1, 2, 96, 3});
  EXPECT_THROW(run(context(), MarkSeen{.tokens = outside, .slots = slots, .seen = seen}), BugError);
}

}  // namespace
}  // namespace sl::test
