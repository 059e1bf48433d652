// The best tokens of rows, against sorting everything.
#include <algorithm>
#include <numeric>
#include <set>

#include "tests/kernels/on_devices.hpp"

namespace sl::test {
namespace {

using BestTokensTest = OnDevices;
SL_ON_DEVICES(BestTokensTest);

struct BestRow {
  std::vector<float> logits;
  std::vector<int32_t> seen = {};
  float penalty = 1.0F;
  bool ban = false;
};

struct Best {
  std::vector<int32_t> tokens;
  std::vector<float> scores;
};

// The `count` best tokens of every row. Rows go through the bitmap in reverse order of slots; those without
// seen tokens have none.
std::vector<Best> best_tokens(const Context& context, const std::vector<BestRow>& rows, int64_t count,
                              const std::vector<int32_t>& banned = {}, int64_t gap = 0) {
  const Device device = context.device;
  const auto n = std::ssize(rows), vocabulary = std::ssize(rows[0].logits), words = (vocabulary + 31) / 32;
  std::vector<float> logits, penalty;
  std::vector<int32_t> slots, ban;
  std::vector<uint32_t> bits(static_cast<size_t>(n * words));
  for (const BestRow& row : rows) {
    const int64_t slot = n - 1 - std::ssize(slots);
    logits.insert(logits.end(), row.logits.begin(), row.logits.end());
    penalty.push_back(row.penalty);
    slots.push_back(row.seen.empty() ? -1 : static_cast<int32_t>(slot));
    ban.push_back(row.ban ? 1 : 0);
    for (const int32_t token : row.seen)
      bits[static_cast<size_t>(slot * words + token / 32)] |= uint32_t{1} << (token % 32);
  }
  const Guarded<float> logits_t(device, {n, vocabulary}, logits, gap), penalty_t(device, {n}, penalty);
  const Guarded<uint32_t> seen(device, {n, words}, bits);
  const Guarded<int32_t> slots_t(device, {n}, slots), ban_t(device, {n}, ban);
  const Guarded<int32_t> banned_t(device, {std::ssize(banned)}, banned), tokens(device, {n, count}, gap);
  const Guarded<float> scores(device, {n, count}, gap);
  run(context, BestTokens{.logits = logits_t,
                          .seen = seen,
                          .slots = slots_t,
                          .penalty = penalty_t,
                          .banned = banned_t,
                          .ban = ban_t,
                          .tokens = tokens,
                          .scores = scores});
  EXPECT_TRUE(logits_t.surroundings_untouched() && tokens.surroundings_untouched() &&
              scores.surroundings_untouched());
  EXPECT_EQ(seen.read(), bits);
  const std::vector<int32_t> all_tokens = tokens.read();
  const std::vector<float> all_scores = scores.read();
  std::vector<Best> best(rows.size());
  for (int64_t row = 0; row < n; ++row) {
    const auto of_row = [&](const auto& all) {
      return std::vector(all.begin() + row * count, all.begin() + (row + 1) * count);
    };
    best[static_cast<size_t>(row)] = {of_row(all_tokens), of_row(all_scores)};
  }
  return best;
}

// The scores of all tokens, by definition.
std::vector<double> scores_of(const BestRow& row, const std::vector<int32_t>& banned) {
  std::vector<double> scores = in_double(row.logits);
  const double largest = *std::ranges::max_element(scores);
  double sum = 0.0;
  for (const double logit : scores) sum += std::exp(logit - largest);
  for (double& score : scores) score -= largest + std::log(sum);
  std::vector<int32_t> seen = row.seen;
  std::ranges::sort(seen);
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  for (const int32_t token : seen) scores[static_cast<size_t>(token)] *= static_cast<double>(row.penalty);
  for (const int32_t token : banned) {
    if (row.ban) scores[static_cast<size_t>(token)] = -INFINITY;
  }
  return scores;
}

// All tokens, best first, the smaller id first among equals.
std::vector<int32_t> in_order(const std::vector<double>& scores) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::ranges::greater(),
                           [&](int32_t token) { return scores[static_cast<size_t>(token)]; });
  return order;
}

void expect_best(const Best& best, const BestRow& row, const std::vector<int32_t>& banned) {
  const std::vector<double> scores = scores_of(row, banned);
  const std::vector<int32_t> order = in_order(scores);
  const auto score = [&](int32_t token) { return scores.at(static_cast<size_t>(token)); };
  std::vector<double> expected, own;
  for (size_t i = 0; i < best.tokens.size(); ++i) {
    expected.push_back(score(order[i]));
    own.push_back(score(best.tokens[i]));
  }
  const double allowed = tolerance(std::ssize(row.logits));
  EXPECT_LE(relative_error(best.scores, expected), allowed);
  EXPECT_LE(relative_error(best.scores, own), allowed) << "a token has the score of another";
  EXPECT_TRUE(std::ranges::is_sorted(best.scores, std::ranges::greater()));
  const std::set<int32_t> different(best.tokens.begin(), best.tokens.end());
  EXPECT_EQ(different.size(), best.tokens.size());
  // Where rounding cannot decide, the token is the one.
  size_t compared = 0;
  for (size_t i = 0; i < best.tokens.size(); ++i) {
    const double above = i == 0 ? INFINITY : score(order[i - 1]) - expected[i];
    const double below = i + 1 == order.size() ? INFINITY : expected[i] - score(order[i + 1]);
    if (std::min(above, below) < 1e-4) continue;
    ++compared;
    EXPECT_EQ(best.tokens[i], order[i]) << "place " << i;
  }
  EXPECT_GE(compared, best.tokens.size() / 2);
}

TEST_P(BestTokensTest, MatchesTheSortedDefinition) {
  for (const int64_t vocabulary : {31, 1000, 49152, 151937}) {
    for (const int64_t count : {1, 8, 20, 128}) {
      if (count > vocabulary) continue;
      SCOPED_TRACE(testing::Message() << count << " of " << vocabulary);
      std::vector<BestRow> rows;
      for (uint32_t i = 0; i < 4; ++i) {
        BestRow row{.logits = random_floats(vocabulary, i, 2.0F), .ban = i > 1};
        for (int64_t token = i; i % 2 == 1 && token < vocabulary; token += 3)
          row.seen.push_back(static_cast<int32_t>(token));
        row.penalty = i == 3 ? 0.8F : 1.3F;
        rows.push_back(row);
      }
      const auto by_logit = in_order(in_double(rows[2].logits));
      const std::vector<int32_t> banned = {by_logit[0], by_logit[2], static_cast<int32_t>(vocabulary - 1)};
      for (const int64_t gap : {0, 3}) {
        const auto best = best_tokens(context(), rows, count, banned, gap);
        for (size_t i = 0; i < rows.size(); ++i) expect_best(best[i], rows[i], banned);
      }
    }
  }
}

TEST_P(BestTokensTest, TheSmallerIdIsFirstAmongEquals) {
  const int64_t vocabulary = 20000;
  std::vector<BestRow> rows;
  rows.push_back({.logits = std::vector<float>(vocabulary, 2.0F)});
  rows.push_back({.logits = small_integers(vocabulary, 1)});
  // All that are better than most are neighbours, or come at the stride of a block of threads.
  for (const size_t stride : {1U, 512U, 1024U, 4096U}) {
    rows.push_back({.logits = small_integers(vocabulary, 2)});
    for (size_t i = 0; i < 100; ++i)
      rows.back().logits[(i * stride + 100) % vocabulary] = 5.0F + static_cast<float>(i % 7);
  }
  // Seen ones fall behind, equals among themselves.
  rows.push_back({.logits = std::vector<float>(vocabulary, 2.0F), .seen = {0, 1, 5, 60}, .penalty = 2.0F});
  for (const int64_t count : {1, 3, 128}) {
    const auto best = best_tokens(context(), rows, count);
    for (size_t i = 0; i < rows.size(); ++i) {
      std::vector<int32_t> expected = in_order(scores_of(rows[i], {}));
      expected.resize(static_cast<size_t>(count));
      EXPECT_EQ(best[i].tokens, expected) << "row " << i << ", " << count;
    }
  }
}

TEST_P(BestTokensTest, BannedTokensCountForTheOthersAndComeLast) {
  BestRow row{.logits = {1.0F, 3.0F, 2.0F}, .ban = true};
  const Best best = best_tokens(context(), {row}, 3, {1}).front();
  EXPECT_EQ(best.tokens, (std::vector<int32_t>{2, 0, 1}));
  const double sum = std::exp(1.0) + std::exp(3.0) + std::exp(2.0);
  EXPECT_NEAR(best.scores[0], 2.0 - std::log(sum), tolerance(3));
  EXPECT_EQ(best.scores[2], -INFINITY);
  row.ban = false;
  EXPECT_EQ(best_tokens(context(), {row}, 1, {1}).front().tokens, std::vector<int32_t>{1});
}

TEST_P(BestTokensTest, RefusesLogitsThatAreNotNumbers) {
  const BestRow good{.logits = random_floats(100, 1)};
  BestRow nan = good, nothing = good, infinite = good;
  nan.logits[70] = NAN;
  nothing.logits.assign(100, -INFINITY);
  infinite.logits[3] = INFINITY;
  for (const BestRow& row : {nan, nothing, infinite}) {
    if (on_host()) {
      EXPECT_THROW(best_tokens(context(), {good, row}, 2), InputError);
    } else {
      const auto best = best_tokens(context(), {good, row}, 2);
      EXPECT_EQ(best[0].tokens, best_tokens(context(), {good}, 2)[0].tokens);
      EXPECT_EQ(best[1].tokens, (std::vector<int32_t>{-1, -1}));
    }
  }
  if (!on_host()) return;
  EXPECT_THROW(best_tokens(context(), {good}, 2, {100}), BugError) << "a banned token outside the vocabulary";
  EXPECT_THROW(best_tokens(context(), {good}, 101), BugError) << "more than there are";
}

}  // namespace
}  // namespace sl::test
