// Normalisation and its gradient, against plain double sums.
#include "tests/kernels/on_devices.hpp"

namespace sl::test {
namespace {

using RmsNormTest = OnDevices;
SL_ON_DEVICES(RmsNormTest);

constexpr double epsilon = 1e-5;

size_t index(int64_t row, int64_t column, int64_t width) { return static_cast<size_t>(row * width + column); }

// out = x / rms(x) * weight, where values holds x, then the weight.
std::vector<double> rmsnorm(const std::vector<double>& values, int64_t rows, int64_t width) {
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

// The gradient of sum(out * grad) in x, then in the weight.
std::vector<double> gradient(const std::vector<double>& values, const std::vector<double>& grad, int64_t rows,
                             int64_t width) {
  std::vector<double> result(values.size(), 0.0);
  for (int64_t t = 0; t < rows; ++t) {
    double squares = 0.0, along = 0.0;
    for (int64_t i = 0; i < width; ++i) {
      const double x = values[index(t, i, width)];
      squares += x * x;
      along += grad[index(t, i, width)] * values[index(rows, i, width)] * x;
    }
    const double mean = squares / static_cast<double>(width) + epsilon, rms = std::sqrt(mean);
    for (int64_t i = 0; i < width; ++i) {
      const double x = values[index(t, i, width)], g = grad[index(t, i, width)];
      result[index(t, i, width)] =
          (g * values[index(rows, i, width)] - x * along / (mean * static_cast<double>(width))) / rms;
      result[index(rows, i, width)] += g * x / rms;
    }
  }
  return result;
}

TEST(RmsNormReference, ItsGradientAgreesWithFiniteDifferences) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 2}, {4, 9}}) {
    const auto values = in_double(random_floats((rows + 1) * width, 1));
    const auto grad = in_double(random_floats(rows * width, 3));
    const auto loss = [&, rows = rows, width = width](const std::vector<double>& at) {
      const auto out = rmsnorm(at, rows, width);
      double sum = 0.0;
      for (size_t i = 0; i < out.size(); ++i) sum += out[i] * grad[i];
      return sum;
    };
    EXPECT_LT(relative_error(gradient(values, grad, rows, width), finite_differences(loss, values)), 1e-8);
  }
}

// Widths of tests and of models, and one wider than a block can keep in registers.
struct Shape {
  int64_t rows, width;
};
const std::vector<Shape> shapes = {{0, 8}, {1, 1}, {5, 33}, {64, 576}, {7, 3584}, {300, 1026}, {2, 20000}};

TEST_P(RmsNormTest, AddsThenNormalises) {
  for (const auto& [rows, width] : shapes) {
    for (const bool with_delta : {false, true}) {
      for (const int64_t gap : {0, 3}) {
        SCOPED_TRACE(testing::Message() << rows << "x" << width << " delta " << with_delta << " gap " << gap);
        const auto x = random_floats(rows * width, 1);
        const auto delta = floats(rows * width, 2), weight = floats(width, 3);
        const Guarded<float> residual(device(), {rows, width}, x, gap);
        const Stored out(place(), {rows, width}, gap), delta_t(place(), {rows, width}, delta, gap);
        const Stored weight_t(place(), {width}, weight);
        run(context(), AddRmsNorm{.residual = residual,
                                  .delta = with_delta ? delta_t.tensor() : Tensor(),
                                  .weight = weight_t,
                                  .epsilon = static_cast<float>(epsilon),
                                  .out = out});
        std::vector<float> sum = x;
        for (size_t i = 0; with_delta && i < sum.size(); ++i) sum[i] += delta[i];
        EXPECT_EQ(residual.read(), sum);
        auto values = in_double(sum);
        values.insert(values.end(), weight.begin(), weight.end());
        EXPECT_LT(relative_error(out.read(), rmsnorm(values, rows, width)), tolerance(1, storage()));
        EXPECT_TRUE(residual.surroundings_untouched() && out.surroundings_untouched());
      }
    }
  }
}

TEST_P(RmsNormTest, ARowDoesNotDependOnTheOthers) {
  const int64_t rows = 40, width = 3584;
  const auto x = random_floats(rows * width, 1);
  const Stored weight(place(), {width}, floats(width, 2));
  const auto normalise = [&](int64_t begin, int64_t end) {
    const Guarded<float> residual(device(), {end - begin, width},
                                  std::vector<float>(x.begin() + begin * width, x.begin() + end * width));
    const Stored out(place(), {end - begin, width});
    run(deterministic(), AddRmsNorm{.residual = residual, .weight = weight, .epsilon = 1e-6F, .out = out});
    return out.read();
  };
  const auto all = normalise(0, rows);
  for (const int64_t row : {0, 17, 39}) {
    const auto alone = normalise(row, row + 1);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), all.begin() + row * width)) << row;
  }
}

// The gradient of the residual stream is f32, or of the storage dtype, as x may be.
TEST_P(RmsNormTest, BackwardIsTheGradientAndAccumulates) {
  const std::vector<Shape> sizes = {{0, 8}, {1, 2}, {4, 19}, {3, 70}, {37, 576}, {9, 3584}};
  for (const auto& [rows, width] : sizes) {
    for (const DType stream : {DType::f32, storage()}) {
      for (const bool with_weight : {true, false}) {
        SCOPED_TRACE(testing::Message() << rows << "x" << width << " " << name_of(stream));
        const Place stream_place{device(), stream};
        const auto x = floats(rows * width, 1), weight = floats(width, 2), grad = floats(rows * width, 3);
        const auto before_x = floats(rows * width, 4), before_weight = random_floats(width, 5);
        const Stored x_t(stream_place, {rows, width}, x), weight_t(place(), {width}, weight);
        const Stored grad_t(place(), {rows, width}, grad);
        const Stored grad_x(stream_place, {rows, width}, before_x);
        const Guarded<float> grad_weight(device(), {width}, before_weight);
        const Stored rounded(place(), {rows, width}, /*gap=*/5), normalised(place(), {rows, width}),
            out(place(), {rows, width});
        run(context(), RmsNormBackward{.x = x_t,
                                       .weight = weight_t,
                                       .epsilon = static_cast<float>(epsilon),
                                       .grad_out = grad_t,
                                       .grad_x = grad_x,
                                       .grad_weight = with_weight ? grad_weight.tensor() : Tensor(),
                                       .rounded = with_weight ? Tensor() : rounded.tensor(),
                                       .normalised = with_weight ? normalised.tensor() : Tensor()});
        if (with_weight && stream == DType::f32) {
          run(context(),
              AddRmsNorm{
                  .residual = x_t, .weight = weight_t, .epsilon = static_cast<float>(epsilon), .out = out});
          EXPECT_LT(relative_error(normalised.read(), in_double(out.read())), tolerance(1, storage()));
          EXPECT_TRUE(normalised.surroundings_untouched());
        }
        if (!with_weight) {
          EXPECT_EQ(rounded.read(), stored(grad_x.read()));
          EXPECT_TRUE(rounded.surroundings_untouched());
        }
        auto values = in_double(x);
        values.insert(values.end(), weight.begin(), weight.end());
        const auto expected = gradient(values, in_double(grad), rows, width);
        std::vector<double> expected_x, expected_weight;
        for (size_t i = 0; i < before_x.size(); ++i)
          expected_x.push_back(static_cast<double>(before_x[i]) + expected[i]);
        for (size_t i = 0; i < before_weight.size(); ++i)
          expected_weight.push_back(static_cast<double>(before_weight[i]) +
                                    (with_weight ? expected[before_x.size() + i] : 0.0));
        EXPECT_LT(relative_error(grad_x.read(), expected_x), tolerance(1, stream));
        EXPECT_LT(relative_error(grad_weight.read(), expected_weight), tolerance(rows + 1));
        EXPECT_TRUE(grad_x.surroundings_untouched() && grad_weight.surroundings_untouched());
      }
    }
  }
}

}  // namespace
}  // namespace sl::test
