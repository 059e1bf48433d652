// Cross-entropy over slices of the vocabulary, the optimizer, and the sum of squares.
#include <algorithm>

#include "tests/kernels/on_devices.hpp"

namespace sl::test {
namespace {

using LossTest = OnDevices;
SL_ON_DEVICES(LossTest);

// The columns begin .. end of a matrix.
std::vector<float> slice(const std::vector<float>& x, int64_t rows, int64_t width, int64_t begin,
                         int64_t end) {
  std::vector<float> part;
  for (int64_t i = 0; i < rows; ++i)
    part.insert(part.end(), x.begin() + i * width + begin, x.begin() + i * width + end);
  return part;
}

// Two slices of a vocabulary, combined as tensor-parallel ranks do, give the loss and gradient of the whole.
TEST_P(LossTest, SlicesTogetherGiveTheLossAndItsGradient) {
  const int64_t rows = 5, vocabulary = 203, cut = 64;
  const auto logits = random_floats(rows * vocabulary, 1, 5.0F);
  const std::vector<int32_t> targets = {0, 63, 64, 202, -1};
  const std::vector<float> weights = {0.25F, 1.0F, 2.0F, 0.5F, 0.0F};
  const Guarded<int32_t> targets_t(device(), {rows}, targets);
  const Guarded<float> weights_t(device(), {rows}, weights);
  std::vector<double> sums(5, 0.0), largest(5, -1e30), target_logits(5, 0.0);
  std::vector<std::vector<float>> maxima, partial;
  for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, {cut, vocabulary}}) {
    const Guarded<float> part(device(), {rows, end - begin}, slice(logits, rows, vocabulary, begin, end), 3);
    const Guarded<float> row_max(device(), {rows}), row_sum(device(), {rows}), target_logit(device(), {rows});
    run(context(), CrossEntropyStats{.logits = part,
                                     .targets = targets_t,
                                     .first_row = begin,
                                     .row_max = row_max,
                                     .row_sum = row_sum,
                                     .target_logit = target_logit});
    maxima.push_back(row_max.read());
    partial.push_back(row_sum.read());
    const auto here = target_logit.read();
    for (size_t i = 0; i < 5; ++i) target_logits[i] += static_cast<double>(here[i]);
    EXPECT_TRUE(row_max.surroundings_untouched() && row_sum.surroundings_untouched() &&
                target_logit.surroundings_untouched());
  }
  std::vector<float> log_sum_exp;
  std::vector<double> losses, wanted_losses;
  const auto loss_of = [&](const std::vector<double>& at, size_t i) {
    double total = 0.0;
    for (size_t j = 0; j < 203; ++j) total += std::exp(at[i * 203 + j]);
    return targets[i] < 0 ? 0.0 : std::log(total) - at[i * 203 + static_cast<size_t>(targets[i])];
  };
  for (size_t i = 0; i < 5; ++i) {
    const double top = static_cast<double>(std::max(maxima[0][i], maxima[1][i]));
    double total = 0.0;
    for (size_t part : {0U, 1U})
      total += static_cast<double>(partial[part][i]) * std::exp(static_cast<double>(maxima[part][i]) - top);
    log_sum_exp.push_back(static_cast<float>(top + std::log(total)));
    losses.push_back(targets[i] < 0 ? 0.0 : top + std::log(total) - target_logits[i]);
    wanted_losses.push_back(loss_of(in_double(logits), i));
  }
  EXPECT_LT(relative_error(losses, wanted_losses), tolerance(vocabulary));

  std::vector<float> gradient(logits.size());
  const Guarded<float> log_sum_exp_t(device(), {rows}, log_sum_exp);
  for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, {cut, vocabulary}}) {
    const Guarded<float> part(device(), {rows, end - begin}, slice(logits, rows, vocabulary, begin, end), 3);
    run(context(), CrossEntropyGradient{.logits = part,
                                        .targets = targets_t,
                                        .first_row = begin,
                                        .log_sum_exp = log_sum_exp_t,
                                        .weights = weights_t,
                                        .out = part});
    EXPECT_TRUE(part.surroundings_untouched());
    const auto values = part.read();
    for (int64_t i = 0; i < rows; ++i)
      std::copy_n(values.begin() + i * (end - begin), end - begin, gradient.begin() + i * vocabulary + begin);
  }
  const auto total_loss = [&](const std::vector<double>& at) {
    double total = 0.0;
    for (size_t i = 0; i < 5; ++i) total += static_cast<double>(weights[i]) * loss_of(at, i);
    return total;
  };
  // The error of the log of the sum, a number near 15, enters every probability.
  EXPECT_LT(relative_error(gradient, finite_differences(total_loss, in_double(logits))),
            tolerance(vocabulary));
}

// Rows of a real vocabulary, with a gap so that rows begin anywhere; some targets are on other ranks.
TEST_P(LossTest, MatchesTheHostOnLargeVocabularies) {
  struct Size {
    int64_t rows, vocabulary, gap;
  };
  for (const auto& [rows, vocabulary, gap] :
       {Size{3, 152064, 0}, {5, 49153, 3}, {0, 128, 0}, {70, 1000, 8}}) {
    const int64_t first_row = 100;
    const auto logits = floats(rows * vocabulary, 1, 4.0F);
    std::vector<int32_t> targets;
    std::vector<float> weights, log_sum_exp;
    for (int64_t i = 0; i < rows; ++i) {
      targets.push_back(static_cast<int32_t>(i == 1 ? 5 : i == 2 ? -1 : first_row + vocabulary - 1 - 13 * i));
      weights.push_back(0.01F * static_cast<float>(i + 1));
      log_sum_exp.push_back(19.0F + static_cast<float>(i % 3));
    }
    struct Result {
      std::vector<float> row_max, row_sum, target_logit, gradient;
    };
    const auto compute = [&, rows = rows, vocabulary = vocabulary, gap = gap](const Place& where,
                                                                              DType gradient_type) {
      const Context here = context_of(where);
      const Guarded<float> logits_t(where.device, {rows, vocabulary}, logits, gap);
      const Stored gradient({where.device, gradient_type}, {rows, vocabulary}, gap);
      const Guarded<int32_t> targets_t(where.device, {rows}, targets);
      const Guarded<float> row_max(where.device, {rows}), row_sum(where.device, {rows}),
          target_logit(where.device, {rows});
      const Guarded<float> log_sum_exp_t(where.device, {rows}, log_sum_exp),
          weights_t(where.device, {rows}, weights);
      run(here, CrossEntropyStats{.logits = logits_t,
                                  .targets = targets_t,
                                  .first_row = first_row,
                                  .row_max = row_max,
                                  .row_sum = row_sum,
                                  .target_logit = target_logit});
      run(here, CrossEntropyGradient{.logits = logits_t,
                                     .targets = targets_t,
                                     .first_row = first_row,
                                     .log_sum_exp = log_sum_exp_t,
                                     .weights = weights_t,
                                     .out = gradient});
      EXPECT_TRUE(row_max.surroundings_untouched() && row_sum.surroundings_untouched() &&
                  target_logit.surroundings_untouched() && gradient.surroundings_untouched());
      return Result{row_max.read(), row_sum.read(), target_logit.read(), gradient.read()};
    };
    const Result expected = compute({}, DType::f32);
    for (const DType gradient_type : {DType::f32, storage()}) {
      const Result found = compute(place(), gradient_type);
      EXPECT_EQ(found.row_max, expected.row_max);
      EXPECT_EQ(found.target_logit, expected.target_logit);
      EXPECT_LT(relative_error(found.row_sum, expected.row_sum), tolerance(vocabulary));
      EXPECT_LT(relative_error(found.gradient, expected.gradient), tolerance(vocabulary, gradient_type));
    }
  }
}

TEST_P(LossTest, AdamWFollowsItsDefinition) {
  constexpr int64_t n = 1003;
  auto parameter = in_double(random_floats(n, 1));
  std::vector<double> first(n, 0.0), second(n, 0.0);
  const Guarded<float> p(device(), {17, 59}, random_floats(n, 1));
  const Guarded<float> m(device(), {17, 59}, std::vector<float>(n)),
      v(device(), {17, 59}, std::vector<float>(n));
  const Stored rounded(place(), {17, 59});
  for (int step = 1; step <= 12; ++step) {
    const auto gradient = random_floats(n, static_cast<uint32_t>(step), 0.3F);
    const Guarded<float> g(device(), {17, 59}, gradient);
    run(context(), AdamW{.parameter = p,
                         .gradient = g,
                         .first_moment = m,
                         .second_moment = v,
                         .rounded = step < 12 ? Tensor() : rounded.tensor(),
                         .learning_rate = 0.01F,
                         .weight_decay = 0.1F,
                         .gradient_scale = 0.5F,
                         .step = step});
    for (size_t i = 0; i < n; ++i) {
      const double scaled = 0.5 * static_cast<double>(gradient[i]);
      parameter[i] -= 0.01 * 0.1 * parameter[i];
      first[i] = 0.9 * first[i] + 0.1 * scaled;
      second[i] = 0.999 * second[i] + 0.001 * scaled * scaled;
      const double m_hat = first[i] / (1.0 - std::pow(0.9, step));
      const double v_hat = second[i] / (1.0 - std::pow(0.999, step));
      parameter[i] -= 0.01 * m_hat / (std::sqrt(v_hat) + 1e-8);
    }
    EXPECT_TRUE(g.surroundings_untouched());
  }
  EXPECT_LT(relative_error(p.read(), parameter), tolerance(12));
  EXPECT_LT(relative_error(m.read(), first), tolerance(12));
  // 1 - 0.999 of floats is 2e-5 away from 0.001: the tolerance of one subtraction near 1, relative to 0.001.
  EXPECT_LT(relative_error(v.read(), second), tolerance(1) * 1000.0);
  EXPECT_EQ(rounded.read(), stored(p.read()));
  EXPECT_TRUE(rounded.surroundings_untouched());
  EXPECT_TRUE(p.surroundings_untouched() && m.surroundings_untouched() && v.surroundings_untouched());
}

TEST_P(LossTest, SumOfSquaresAddsInDouble) {
  for (const int64_t n : {0, 1, 3, 1000, 200001}) {
    const auto x = floats(n, 1);
    double expected = 1.5;
    for (float value : x) expected += static_cast<double>(value) * static_cast<double>(value);
    double result = 1.5;
    run(context(), SumOfSquares{.x = Stored(place(), {n}, x), .result = &result});
    EXPECT_NEAR(result, expected, 1e-10 * expected);
  }
  EXPECT_THROW(run(context(), SumOfSquares{.x = Stored(place(), {1})}), BugError);
}

}  // namespace
}  // namespace sl::test
