// Drawing tokens, against the distribution by its definition and recorded ones.
#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "core/rng.hpp"
#include "tests/kernels/sampling_rows.hpp"

namespace sl::test {
namespace {

using SamplingTest = OnDevices;
SL_ON_DEVICES(SamplingTest);

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
  Row good{.logits = random_floats(100, 1)}, nan = good, nothing = good, infinite = good;
  nan.logits[70] = NAN;
  nothing.logits.assign(100, -INFINITY);
  infinite.logits[3] = INFINITY;
  for (Row* row : {&nan, &nothing, &infinite}) {
    for (const float temperature : {1.0F, 0.0F}) {
      for (const int32_t top_k : {0, 5}) {
        row->temperature = temperature;
        row->top_k = top_k;
        if (on_host()) {
          EXPECT_THROW(sample(context(), {good, *row}), InputError);
        } else {
          const auto drawn = sample(context(), {good, *row});
          EXPECT_EQ(drawn[0], sample(context(), {good})[0]);
          EXPECT_EQ(drawn[1], -1);
        }
      }
    }
  }
  // A banned token may be anything.
  nan.ban = true;
  EXPECT_NE(sample(context(), {nan}, {70})[0], 70);
  if (!on_host()) return;
  EXPECT_THROW(sample(context(), {good}, {100}), BugError) << "a banned token outside the vocabulary";
}

TEST_P(SamplingTest, NoRowsAreNoDraws) {
  const Guarded<float> logits(device(), {0, 70}), numbers(device(), {0});
  const Guarded<uint32_t> seen(device(), {2, 3}, std::vector<uint32_t>(6, 5)), addresses(device(), {0});
  const Guarded<int32_t> integers(device(), {0});
  run(context(), SampleTokens{.logits = logits,
                              .seen = seen,
                              .slots = integers,
                              .temperature = numbers,
                              .top_p = numbers,
                              .penalty = numbers,
                              .top_k = integers,
                              .stream_low = addresses,
                              .stream_high = addresses,
                              .position = addresses,
                              .banned = integers,
                              .ban = integers,
                              .out = integers});
  run(context(), MarkSeen{.tokens = integers, .slots = integers, .seen = seen});
  EXPECT_EQ(seen.read(), std::vector<uint32_t>(6, 5));
}

TEST_P(SamplingTest, MarkSeenSetsBitsAndSkipsNegativeSlots) {
  const Guarded<uint32_t> seen(device(), {2, 3}, {0, 1, 0, 0, 0, 4});
  const Guarded<int32_t> tokens(device(), {5}, {0, 31, 64, 95, 1}), slots(device(), {5}, {1, 1, 0, 1, -1});
  run(context(), MarkSeen{.tokens = tokens, .slots = slots, .seen = seen});
  EXPECT_EQ(seen.read(), (std::vector<uint32_t>{0, 1, 1, 0x80000001U, 0, 0x80000004U}));
  EXPECT_TRUE(seen.surroundings_untouched());
  if (!on_host()) return;
  const Guarded<int32_t> outside(device(), {5}, {0, 1, 2, 96, 3});
  EXPECT_THROW(run(context(), MarkSeen{.tokens = outside, .slots = slots, .seen = seen}), BugError);
}

}  // namespace
}  // namespace sl::test
