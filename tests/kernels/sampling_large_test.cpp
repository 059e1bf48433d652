// Drawing tokens from the vocabularies of models, many rows at a time, against the host.
#include "core/rng.hpp"
#include "tests/kernels/sampling_rows.hpp"

namespace sl::test {
namespace {

using SamplingLargeTest = OnDevices;
SL_ON_DEVICES(SamplingLargeTest);

struct Filter {
  int32_t top_k;
  float top_p, temperature, penalty;
};

// The filters of a rollout, those of evaluations, and those at which the list of candidates is long, or is
// the whole vocabulary.
const std::vector<Filter> filters = {
    {20, 0.8F, 0.7F, 1.1F},   {1, 1.0F, 1.0F, 1.1F},  {64, 1.0F, 1.0F, 1.0F},  {65, 0.9F, 1.0F, 1.0F},
    {0, 0.9F, 0.7F, 1.3F},    {0, 1.0F, 1.0F, 1.0F},  {0, 0.95F, 30.0F, 1.1F}, {0, 1e-6F, 1.0F, 1.0F},
    {5000, 0.9F, 2.0F, 1.1F}, {20, 0.8F, 0.0F, 1.1F}, {20, 0.8F, 0.01F, 1.0F}};

// Like those of a language model: most far below a few; `step` above 0 rounds them to its multiples, so that
// many are equal.
std::vector<float> model_logits(int64_t vocabulary, uint32_t seed, float step) {
  auto logits = random_floats(vocabulary, seed, 2.5F);
  std::mt19937 generator(seed);
  for (int i = 0; i < 30; ++i)
    logits[generator() % logits.size()] += 8.0F + 0.2F * static_cast<float>(generator() % 16);
  for (float& logit : logits) {
    if (step > 0.0F) logit = step * std::round(logit / step);
  }
  return logits;
}

std::vector<Row> make_rows(const Filter& filter, int64_t count, int64_t vocabulary, float step) {
  std::vector<Row> rows;
  for (int64_t i = 0; i < count; ++i) {
    const auto seed = static_cast<uint32_t>(i);
    Row row{.logits = model_logits(vocabulary, 100 + seed % 4, step),
            .temperature = filter.temperature,
            .top_p = filter.top_p,
            .penalty = filter.penalty,
            .top_k = filter.top_k,
            .stream = 0x9E3779B97F4A7C15ULL * (seed + 1),
            .position = seed,
            .ban = i % 3 == 1};
    std::mt19937 generator(seed);
    for (int token = 0; i % 4 != 3 && token < 1500; ++token)
      row.seen.push_back(static_cast<int32_t>(generator() % static_cast<uint32_t>(vocabulary)));
    rows.push_back(std::move(row));
  }
  return rows;
}

// Whether rounding may decide between two tokens: the uniform number is within 1e-5 of a border between them.
bool near_a_border(Row row, const std::vector<int32_t>& banned, int32_t one, int32_t other) {
  for (const int32_t token : banned) {
    if (row.ban) row.logits[static_cast<size_t>(token)] = -INFINITY;
  }
  const auto probabilities = distribution(row);
  const double uniform = static_cast<double>(uniform_at(row.stream, row.position));
  double cumulated = 0.0;
  for (int32_t token = 0; token < std::max(one, other); ++token) {
    cumulated += probabilities[static_cast<size_t>(token)];
    if (token >= std::min(one, other) && std::abs(cumulated - uniform) < 1e-5) return true;
  }
  return false;
}

void expect_the_hosts_draws(const Context& here, const std::vector<Row>& rows, int64_t gap) {
  const std::vector<int32_t> banned = {0, 77, static_cast<int32_t>(rows[0].logits.size() - 1)};
  const auto expected = sample({}, rows, banned);
  const auto drawn = sample(here, rows, banned, gap);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (drawn[i] == expected[i]) continue;
    EXPECT_GE(drawn[i], 0);
    EXPECT_NE(rows[i].temperature, 0.0F) << "row " << i << ": " << drawn[i] << " is not " << expected[i];
    EXPECT_TRUE(near_a_border(rows[i], banned, drawn[i], expected[i]))
        << "row " << i << ": " << drawn[i] << " is not " << expected[i];
  }
}

struct Size {
  int64_t rows, vocabulary;
};

TEST_P(SamplingLargeTest, DrawsAsTheHostDoes) {
  if (on_host()) GTEST_SKIP() << "the host is what the others are compared with";
  for (const auto& [count, vocabulary] :
       {Size{1, 152064}, {3, 49153}, {40, 32000}, {70, 8192}, {300, 1000}}) {
    for (const Filter& filter : filters) {
      for (const float step : {0.0F, 0.5F}) {
        SCOPED_TRACE(testing::Message()
                     << count << " rows of " << vocabulary << ", k " << filter.top_k << " p " << filter.top_p
                     << " t " << filter.temperature << " step " << step);
        expect_the_hosts_draws(context(), make_rows(filter, count, vocabulary, step), 0);
      }
    }
  }
}

TEST_P(SamplingLargeTest, RowsMayBeginAnywhere) {
  if (on_host()) GTEST_SKIP() << "the host is what the others are compared with";
  for (const int64_t gap : {1, 8}) {
    for (const Filter& filter : {filters[0], filters[4]})
      expect_the_hosts_draws(context(), make_rows(filter, 5, 32000, 0.0F), gap);
  }
}

// All logits equal: the list of candidates is the vocabulary, whatever top-k says.
TEST_P(SamplingLargeTest, EqualLogitsAreDrawnEvenly) {
  for (const int64_t vocabulary : {1000, 40000}) {
    std::vector<Row> rows;
    for (uint32_t position = 0; position < 20; ++position)
      rows.push_back({.logits = std::vector<float>(static_cast<size_t>(vocabulary), -3.25F),
                      .top_k = position % 2 == 0 ? 0 : 20,
                      .stream = 9,
                      .position = position});
    const auto drawn = sample(context(), rows);
    for (uint32_t position = 0; position < 20; ++position) {
      const double expected = static_cast<double>(uniform_at(9, position)) * static_cast<double>(vocabulary);
      EXPECT_NEAR(drawn[position], std::floor(expected), 1.0);
    }
  }
}

// A row draws the same alone, when several blocks of a GPU may share it, and among many.
TEST_P(SamplingLargeTest, ADrawDoesNotDependOnTheBatch) {
  for (const Filter& filter : {filters[0], filters[4], filters[5]}) {
    const auto rows = make_rows(filter, 70, 40000, 0.0F);
    const auto all = sample(context(), rows);
    for (const size_t i : {0U, 13U, 69U}) EXPECT_EQ(sample(context(), {rows[i]})[0], all[i]);
    for (const int64_t few : {20, 40}) {
      const auto some = sample(context(), {rows.begin(), rows.begin() + few});
      EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin()));
    }
  }
}

}  // namespace
}  // namespace sl::test
