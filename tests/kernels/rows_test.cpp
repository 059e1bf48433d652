// Operations on rows and elements: embedding, gathering, addition, gated activation, normalisation, rotation.
#include <algorithm>

#include "kernels/cpu/fast_exp.hpp"
#include "kernels/ops.hpp"
#include "tests/support.hpp"

namespace sl::test {
namespace {

using RowsTest = OnDevices;
SL_ON_DEVICES(RowsTest);

size_t index(int64_t row, int64_t column, int64_t width) { return static_cast<size_t>(row * width + column); }

TEST_P(RowsTest, EmbeddingTakesOnlyTheRowsHere) {
  const auto table = random_floats(4 * 7, 1);
  const Guarded<float> table_t(device(), {4, 7}, table), out(device(), {5, 7});
  const Guarded<int32_t> tokens(device(), {5}, {10, 13, 9, 14, 12});
  run(context(), Embedding{.tokens = tokens, .table = table_t, .first_row = 10, .out = out});
  std::vector<float> expected(35, 0.0F);
  for (const auto& [to, from] : {std::pair{0, 0}, {1, 3}, {4, 2}})
    std::copy_n(table.begin() + from * 7, 7, expected.begin() + to * 7);
  EXPECT_EQ(out.read(), expected);
  EXPECT_TRUE(out.surroundings_untouched());
}

TEST_P(RowsTest, EmbeddingBackwardAddsEveryOccurrence) {
  const auto grad = small_integers(4 * 3, 1), before = small_integers(2 * 3, 2);
  const Guarded<float> grad_t(device(), {4, 3}, grad), table(device(), {2, 3}, before);
  const Guarded<int32_t> tokens(device(), {4}, {6, 5, 6, 8});
  run(context(),
      EmbeddingBackward{.tokens = tokens, .grad_out = grad_t, .first_row = 5, .grad_table = table});
  std::vector<float> expected = before;
  for (size_t i = 0; i < 3; ++i) {
    expected[i] += grad[3 + i];
    expected[3 + i] += grad[i] + grad[6 + i];
  }
  EXPECT_EQ(table.read(), expected);
  EXPECT_TRUE(table.surroundings_untouched());
}

TEST_P(RowsTest, GatherAndScatterMoveRows) {
  const auto x = small_integers(5 * 9, 1), more = small_integers(3 * 9, 2);
  const Guarded<float> x_t(device(), {5, 9}, x, 4), picked(device(), {3, 9}), more_t(device(), {3, 9}, more);
  const Guarded<int32_t> indices(device(), {3}, {4, 0, 2});
  run(context(), GatherRows{.x = x_t, .indices = indices, .out = picked});
  std::vector<float> expected;
  for (int64_t row : {4, 0, 2})
    expected.insert(expected.end(), x.begin() + row * 9, x.begin() + (row + 1) * 9);
  EXPECT_EQ(picked.read(), expected);
  EXPECT_TRUE(picked.surroundings_untouched());

  run(context(), ScatterAddRows{.x = more_t, .indices = indices, .out = x_t});
  expected = x;
  for (const auto& [to, from] : {std::pair{4, 0}, {0, 1}, {2, 2}}) {
    for (int64_t i = 0; i < 9; ++i) expected[index(to, i, 9)] += more[index(from, i, 9)];
  }
  EXPECT_EQ(x_t.read(), expected);
  EXPECT_TRUE(x_t.surroundings_untouched());
  const Guarded<int32_t> outside(device(), {3}, {4, 0, 5});
  EXPECT_THROW(run(context(), GatherRows{.x = x_t, .indices = outside, .out = picked}), BugError);
  EXPECT_THROW(run(context(), ScatterAddRows{.x = more_t, .indices = outside, .out = x_t}), BugError);
}

TEST_P(RowsTest, AddCopyAndFillKeepToTheirColumns) {
  for (const int64_t gap : {0, 3}) {
    const auto x = small_integers(6 * 5, 1), before = small_integers(6 * 5, 2);
    const Guarded<float> x_t(device(), {6, 5}, x), out(device(), {6, 5}, before, gap);
    run(context(), Add{.x = x_t, .out = out, .scale = 0.5F});
    std::vector<float> expected(30);
    for (size_t i = 0; i < 30; ++i) expected[i] = before[i] + 0.5F * x[i];
    EXPECT_EQ(out.read(), expected);
    run(context(), Copy{.x = x_t, .out = out});
    EXPECT_EQ(out.read(), x);
    run(context(), Fill{.out = out, .value = 2.5F});
    EXPECT_EQ(out.read(), std::vector<float>(30, 2.5F));
    EXPECT_TRUE(out.surroundings_untouched());
  }
  const Guarded<float> narrow(device(), {6, 4}), wide(device(), {6, 5});
  EXPECT_THROW(run(context(), Add{.x = narrow, .out = wide}), BugError);
  EXPECT_THROW(run(context(), Copy{.x = narrow, .out = wide}), BugError);
}

TEST(FastExp, IsWithinTwoUnitsInTheLastPlace) {
  std::vector<float> inputs;
  for (int i = 0; i <= 1000000; ++i) inputs.push_back(-87.3F + 175.6F * static_cast<float>(i) / 1e6F);
  for (const float x : {0.0F, -0.0F, 1e-30F, -1e-30F, 0.34657359F, -0.34657359F}) inputs.push_back(x);
  double worst = 0.0;
  for (size_t i = 0; i < inputs.size(); i += lanes) {
    const size_t n = std::min<size_t>(lanes, inputs.size() - i);
    float results[lanes];
    store(results, fast_exp(load_part(inputs.data() + i, static_cast<int64_t>(n == lanes ? lanes : n))));
    for (size_t j = 0; j < n; ++j) {
      const double exact = std::exp(static_cast<double>(inputs[i + j]));
      const float nearest = static_cast<float>(exact);
      const double unit =
          static_cast<double>(std::nextafter(nearest, INFINITY)) - static_cast<double>(nearest);
      worst = std::max(worst, std::abs(static_cast<double>(results[j]) - exact) / unit);
    }
  }
  EXPECT_LE(worst, 2.0);
  EXPECT_GT(worst, 0.0);
}

TEST(FastExp, HandlesTheEdges) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float inputs[] = {-infinity, infinity, NAN, 0.0F};
  float results[lanes];
  store(results, fast_exp(load_part(inputs, lanes == 4 ? 3 : 4)));
  EXPECT_EQ(results[0], 0.0F);
  EXPECT_GT(results[1], 2e38F);
  EXPECT_TRUE(std::isfinite(results[1]));
  EXPECT_TRUE(std::isnan(results[2]));
  EXPECT_EQ(results[3], 1.0F);
}

std::vector<double> swiglu(const std::vector<double>& gate_up, int64_t rows, int64_t width) {
  std::vector<double> out;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t i = 0; i < width; ++i) {
      const double g = gate_up[index(t, i, 2 * width)], u = gate_up[index(t, width + i, 2 * width)];
      out.push_back(g / (1.0 + std::exp(-g)) * u);
    }
  }
  return out;
}

double dot(const std::vector<double>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * static_cast<double>(b[i]);
  return sum;
}

TEST_P(RowsTest, SwiGluAndItsGradient) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 1}, {3, 17}, {2, 64}, {70, 700}, {0, 5}}) {
    const auto gate_up = random_floats(rows * 2 * width, 1, 3.0F), grad = random_floats(rows * width, 2);
    const Guarded<float> in(device(), {rows, 2 * width}, gate_up), out(device(), {rows, width}, 3);
    run(context(), SwiGlu{.gate_up = in, .out = out});
    EXPECT_LT(relative_error(out.read(), swiglu(in_double(gate_up), rows, width)), tolerance(1));
    EXPECT_TRUE(out.surroundings_untouched());

    const Guarded<float> grad_t(device(), {rows, width}, grad), result(device(), {rows, 2 * width});
    run(context(), SwiGluBackward{.gate_up = in, .grad_out = grad_t, .grad_gate_up = result});
    const auto separate = result.read();
    EXPECT_TRUE(result.surroundings_untouched());
    run(context(), SwiGluBackward{.gate_up = in, .grad_out = grad_t, .grad_gate_up = in});
    EXPECT_EQ(in.read(), separate) << "in place";
    if (rows * width > 200) continue;
    const auto loss = [&](const std::vector<double>& at) { return dot(swiglu(at, rows, width), grad); };
    EXPECT_LT(relative_error(separate, finite_differences(loss, in_double(gate_up))), tolerance(1));
  }
}

// out = x / rms(x) * weight, where values holds x, then the weight.
std::vector<double> rmsnorm(const std::vector<double>& values, int64_t rows, int64_t width, double epsilon) {
  std::vector<double> out;
  for (int64_t t = 0; t < rows; ++t) {
    double squares = 0.0;
    for (int64_t i = 0; i < width; ++i) squares += values[index(t, i, width)] * values[index(t, i, width)];
    const double rms = std::sqrt(squares / static_cast<double>(width) + epsilon);
    for (int64_t i = 0; i < width; ++i)
      out.push_back(values[index(t, i, width)] / rms * values[index(rows, i, width)]);
  }
  return out;
}

TEST_P(RowsTest, AddRmsNormAddsThenNormalises) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 1}, {5, 33}, {64, 576}, {0, 8}}) {
    for (const bool with_delta : {false, true}) {
      const auto x = random_floats(rows * width, 1), delta = random_floats(rows * width, 2);
      const auto weight = random_floats(width, 3);
      const Guarded<float> residual(device(), {rows, width}, x), out(device(), {rows, width});
      const Guarded<float> delta_t(device(), {rows, width}, delta, 2), weight_t(device(), {width}, weight);
      run(context(), AddRmsNorm{.residual = residual,
                                .delta = with_delta ? delta_t.tensor() : Tensor(),
                                .weight = weight_t,
                                .epsilon = 1e-5F,
                                .out = out});
      std::vector<float> sum = x;
      for (size_t i = 0; with_delta && i < sum.size(); ++i) sum[i] += delta[i];
      EXPECT_EQ(residual.read(), sum);
      auto values = in_double(sum);
      values.insert(values.end(), weight.begin(), weight.end());
      EXPECT_LT(relative_error(out.read(), rmsnorm(values, rows, width, 1e-5)), tolerance(1));
      EXPECT_TRUE(residual.surroundings_untouched() && out.surroundings_untouched());
    }
  }
}

TEST_P(RowsTest, RmsNormBackwardIsTheGradientAndAccumulates) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 2}, {4, 19}, {3, 70}}) {
    const auto x = random_floats(rows * width, 1), weight = random_floats(width, 2);
    const auto grad = random_floats(rows * width, 3);
    const auto before_x = random_floats(rows * width, 4), before_weight = random_floats(width, 5);
    const Guarded<float> x_t(device(), {rows, width}, x), weight_t(device(), {width}, weight);
    const Guarded<float> grad_t(device(), {rows, width}, grad), grad_x(device(), {rows, width}, before_x);
    const Guarded<float> grad_weight(device(), {width}, before_weight);
    run(context(), RmsNormBackward{.x = x_t,
                                   .weight = weight_t,
                                   .epsilon = 1e-5F,
                                   .grad_out = grad_t,
                                   .grad_x = grad_x,
                                   .grad_weight = grad_weight});
    auto values = in_double(x);
    values.insert(values.end(), weight.begin(), weight.end());
    const auto loss = [&](const std::vector<double>& at) {
      return dot(rmsnorm(at, rows, width, 1e-5), grad);
    };
    auto expected = finite_differences(loss, values);
    for (size_t i = 0; i < before_x.size(); ++i) expected[i] += static_cast<double>(before_x[i]);
    for (size_t i = 0; i < before_weight.size(); ++i)
      expected[before_x.size() + i] += static_cast<double>(before_weight[i]);
    auto actual = grad_x.read();
    const auto weights = grad_weight.read();
    actual.insert(actual.end(), weights.begin(), weights.end());
    EXPECT_LT(relative_error(actual, expected), tolerance(rows));
    EXPECT_TRUE(grad_x.surroundings_untouched() && grad_weight.surroundings_untouched());
  }
}

TEST_P(RowsTest, RopeRotatesTheFirstHeadsAndTurnsBack) {
  for (const int64_t head_dim : {2, 6, 64}) {
    const int64_t rows = 5, heads = 3, width = 4 * head_dim, half = head_dim / 2;
    const auto x = random_floats(rows * width, 1);
    const std::vector<int32_t> positions = {0, 1, 7, 4095, 16383};
    std::vector<float> frequencies;
    for (int64_t i = 0; i < half; ++i)
      frequencies.push_back(std::pow(10000.0F, -static_cast<float>(i) / static_cast<float>(half)));
    const Guarded<float> qkv(device(), {rows, width}, x, 3), frequencies_t(device(), {half}, frequencies);
    const Guarded<int32_t> positions_t(device(), {rows}, positions);
    Rope op{.qkv = qkv,
            .positions = positions_t,
            .frequencies = frequencies_t,
            .heads = heads,
            .head_dim = head_dim,
            .magnitude = 1.25F};
    run(context(), op);
    auto expected = in_double(x);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t head = 0; head < heads; ++head) {
        for (int64_t i = 0; i < half; ++i) {
          // The angle itself is a product of floats, as in the models' own code.
          const double angle = static_cast<double>(static_cast<float>(positions[static_cast<size_t>(t)]) *
                                                   frequencies[static_cast<size_t>(i)]);
          double& first = expected[index(t, head * head_dim + i, width)];
          double& second = expected[index(t, head * head_dim + half + i, width)];
          const double a = first, b = second;
          first = 1.25 * (a * std::cos(angle) - b * std::sin(angle));
          second = 1.25 * (b * std::cos(angle) + a * std::sin(angle));
        }
      }
    }
    EXPECT_LT(relative_error(qkv.read(), expected), tolerance(2));
    EXPECT_TRUE(qkv.surroundings_untouched());

    op.inverse = true;
    op.magnitude = 0.8F;
    run(context(), op);
    EXPECT_LT(relative_error(qkv.read(), x), tolerance(4));
  }
}

TEST_P(RowsTest, StoreKvWritesThePageSlots) {
  const int64_t pages = 3, heads = 2, tokens = 4, dim = 5, width = (4 + 2 * heads) * dim;
  const auto qkv = random_floats(4 * width, 1);
  const Guarded<float> qkv_t(device(), {4, width}, qkv);
  const auto before = random_floats(pages * heads * tokens * dim, 2);
  const Guarded<float> keys(device(), {pages, heads, tokens, dim}, before);
  const Guarded<float> values(device(), {pages, heads, tokens, dim}, before);
  const std::vector<int32_t> slots = {5, -1, 11, 0};
  const Guarded<int32_t> slots_t(device(), {4}, slots);
  run(context(), StoreKv{.qkv = qkv_t, .slots = slots_t, .key_pages = keys, .value_pages = values});
  auto expected_keys = before, expected_values = before;
  for (int64_t t : {0, 2, 3}) {
    const int64_t slot = slots[static_cast<size_t>(t)];
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t d = 0; d < dim; ++d) {
        const int64_t at = ((slot / tokens * heads + h) * tokens + slot % tokens) * dim + d;
        expected_keys[static_cast<size_t>(at)] = qkv[index(t, (4 + h) * dim + d, width)];
        expected_values[static_cast<size_t>(at)] = qkv[index(t, (4 + heads + h) * dim + d, width)];
      }
    }
  }
  EXPECT_EQ(keys.read(), expected_keys);
  EXPECT_EQ(values.read(), expected_values);
  EXPECT_TRUE(keys.surroundings_untouched() && values.surroundings_untouched());
  const Guarded<int32_t> outside(device(), {4}, {0, 1, 2, 12});
  EXPECT_THROW(
      run(context(), StoreKv{.qkv = qkv_t, .slots = outside, .key_pages = keys, .value_pages = values}),
      BugError);
}

TEST_P(RowsTest, OperationsRefuseMissingAndForeignTensors) {
  const Guarded<float> x(device(), {2, 4}), out(device(), {2, 4});
  const Guarded<int32_t> indices(device(), {2}, {0, 1});
  EXPECT_THROW(run(context(), AddRmsNorm{.residual = x, .delta = {}, .weight = {}, .out = out}), BugError);
  const Device other = device() == Device::cpu ? Device::debug : Device::cpu;
  const Guarded<float> elsewhere(other, {2, 4});
  EXPECT_THROW(run(context(), GatherRows{.x = elsewhere, .indices = indices, .out = out}), BugError);
  EXPECT_THROW(run(context(), GatherRows{.x = x, .indices = x, .out = out}), BugError);
}

}  // namespace
}  // namespace sl::test
