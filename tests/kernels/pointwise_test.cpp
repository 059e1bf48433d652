// Operations element by element.
#include <algorithm>

#include "tests/kernels/on_devices.hpp"
#include "tests/kernels/swiglu_reference.hpp"

namespace sl::test {
namespace {

using PointwiseTest = OnDevices;
SL_ON_DEVICES(PointwiseTest);

struct Shape {
  int64_t rows, width;
};
const std::vector<Shape> shapes = {{0, 5}, {1, 1}, {6, 5}, {3, 64}, {70, 701}, {257, 1024}};

TEST_P(PointwiseTest, AddCopyAndFillKeepToTheirColumns) {
  for (const auto& [rows, width] : shapes) {
    for (const int64_t gap : {0, 3, 8}) {
      const auto x = small_integers(rows * width, 1), before = small_integers(rows * width, 2);
      const Stored x_t(place(), {rows, width}, x, gap == 3 ? 1 : 0), out(place(), {rows, width}, before, gap);
      std::vector<float> sum(before.size());
      for (size_t i = 0; i < sum.size(); ++i) sum[i] = before[i] + 0.5F * x[i];
      run(context(), Add{.x = x_t, .out = out, .scale = 0.5F});
      EXPECT_EQ(out.read(), sum) << rows << "x" << width << " gap " << gap;
      run(context(), Copy{.x = x_t, .out = out});
      EXPECT_EQ(out.read(), x);
      std::vector<float> scaled = x;
      for (float& value : scaled) value *= -1.5F;
      run(context(), Copy{.x = x_t, .out = out, .scale = -1.5F});
      EXPECT_EQ(out.read(), scaled);
      run(context(), Fill{.out = out, .value = 2.5F});
      EXPECT_EQ(out.read(), std::vector<float>(x.size(), 2.5F));
      EXPECT_TRUE(out.surroundings_untouched());
    }
  }
}

// More than one launch takes.
TEST_P(PointwiseTest, CopiesTogetherAreThoseOneByOne) {
  for (const int64_t gap : {0, 3, 8}) {
    std::vector<std::unique_ptr<Stored>> from, to;
    std::vector<std::vector<float>> expected;
    std::vector<Copy> copies;
    for (int i = 0; i < 150; ++i) {
      const auto [rows, width] = shapes[static_cast<size_t>(i) % shapes.size()];
      const float scale = i % 2 == 0 ? 1.0F : -0.5F;
      expected.push_back(small_integers(rows * width, static_cast<uint32_t>(i)));
      from.push_back(
          std::make_unique<Stored>(place(), std::initializer_list<int64_t>{rows, width}, expected.back()));
      to.push_back(std::make_unique<Stored>(place(), std::initializer_list<int64_t>{rows, width}, gap));
      copies.push_back({.x = *from.back(), .out = *to.back(), .scale = scale});
      for (float& value : expected.back()) value *= scale;
    }
    run(context(), Copies{copies});
    for (size_t i = 0; i < copies.size(); ++i) {
      EXPECT_EQ(to[i]->read(), expected[i]) << i << " gap " << gap;
      EXPECT_TRUE(to[i]->surroundings_untouched());
    }
  }
  run(context(), Copies{});
  const Stored narrow(place(), {6, 4}), wide(place(), {6, 5});
  const std::vector<Copy> unfit = {{.x = narrow, .out = wide}};
  EXPECT_THROW(run(context(), Copies{unfit}), BugError);
}

// Between the storage dtype and f32, as gradients and the residual stream need it.
TEST_P(PointwiseTest, AddAndCopyConvert) {
  for (const auto& [rows, width] : shapes) {
    const auto exact = random_floats(rows * width, 1), rounded = stored(exact);
    const Guarded<float> wide(device(), {rows, width}, exact);
    const Stored narrow(place(), {rows, width});
    run(context(), Copy{.x = wide, .out = narrow});
    EXPECT_EQ(narrow.read(), rounded);
    run(context(), Copy{.x = narrow, .out = wide});
    EXPECT_EQ(wide.read(), rounded);
    run(context(), Add{.x = narrow, .out = wide});
    std::vector<float> doubled = rounded;
    for (float& value : doubled) value *= 2.0F;
    EXPECT_EQ(wide.read(), doubled);
  }
}

TEST_P(PointwiseTest, RefusesOtherShapes) {
  const Stored narrow(place(), {6, 4}), wide(place(), {6, 5});
  EXPECT_THROW(run(context(), Add{.x = narrow, .out = wide}), BugError);
  EXPECT_THROW(run(context(), Copy{.x = narrow, .out = wide}), BugError);
}

std::vector<float> fill_uniform(const Place& place, int64_t rows, int64_t columns, int64_t gap,
                                uint64_t stream) {
  const Stored out(place, {rows, columns}, gap);
  run(context_of(place), FillUniform{.out = out, .width = 0.25F, .stream = stream});
  EXPECT_TRUE(out.surroundings_untouched());
  return out.read();
}

TEST_P(PointwiseTest, FillUniformIsAddressed) {
  constexpr uint64_t stream = 0x123456789ABCDEFULL;
  const auto values = fill_uniform(place(), 50, 1001, 0, stream);
  double sum = 0.0, squares = 0.0;
  for (const float value : values) {
    ASSERT_TRUE(value >= -0.25F && value <= 0.25F);
    sum += static_cast<double>(value);
    squares += static_cast<double>(value) * static_cast<double>(value);
  }
  const double n = static_cast<double>(values.size());
  EXPECT_NEAR(sum / n, 0.0, 0.25 * 5.0 / std::sqrt(3.0 * n));
  EXPECT_NEAR(squares / n, 0.0625 / 3.0, 0.001);
  // Neither the shape, nor a gap, nor how many there are changes a number; the device only rounds it.
  EXPECT_EQ(fill_uniform(place(), 1001, 50, 0, stream), values);
  EXPECT_EQ(fill_uniform(place(), 50, 1001, 3, stream), values);
  const auto few = fill_uniform(place(), 1, 7, 0, stream);
  EXPECT_TRUE(std::equal(few.begin(), few.end(), values.begin()));
  EXPECT_EQ(stored(fill_uniform({}, 50, 1001, 0, stream)), values);
  for (const uint64_t other : {stream + 1, stream + (uint64_t{1} << 32)}) {
    const auto others = fill_uniform(place(), 50, 1001, 0, other);
    int64_t same = 0;
    for (size_t i = 0; i < others.size(); ++i) same += others[i] == values[i] ? 1 : 0;
    EXPECT_LT(same, 500);
  }
  EXPECT_TRUE(fill_uniform(place(), 0, 5, 0, stream).empty());
}

TEST(SwiGluReference, ItsGradientAgreesWithFiniteDifferences) {
  const auto gate_up = in_double(random_floats(3 * 2 * 5, 1, 3.0F)),
             grad = in_double(random_floats(3 * 5, 2));
  const auto loss = [&](const std::vector<double>& at) {
    const auto out = swiglu(at, 3, 5);
    double sum = 0.0;
    for (size_t i = 0; i < out.size(); ++i) sum += out[i] * grad[i];
    return sum;
  };
  EXPECT_LT(relative_error(swiglu_gradient(gate_up, grad, 3, 5), finite_differences(loss, gate_up)), 1e-8);
}

TEST_P(PointwiseTest, SwiGluAndItsGradient) {
  for (const auto& [rows, width] : shapes) {
    SCOPED_TRACE(testing::Message() << rows << "x" << width);
    const auto gate_up = floats(rows * 2 * width, 1, 3.0F), grad = floats(rows * width, 2);
    for (const int64_t gap : {0, 3}) {
      const Stored in(place(), {rows, 2 * width}, gate_up, gap), out(place(), {rows, width}, gap);
      run(context(), SwiGlu{.gate_up = in, .out = out});
      EXPECT_LT(relative_error(out.read(), swiglu(in_double(gate_up), rows, width)), tolerance(1, storage()));
      EXPECT_TRUE(out.surroundings_untouched());

      const Stored grad_t(place(), {rows, width}, grad), result(place(), {rows, 2 * width}, gap);
      run(context(), SwiGluBackward{.gate_up = in, .grad_out = grad_t, .grad_gate_up = result});
      const auto separate = result.read();
      EXPECT_LT(relative_error(separate, swiglu_gradient(in_double(gate_up), in_double(grad), rows, width)),
                tolerance(1, storage()));
      EXPECT_TRUE(result.surroundings_untouched());
      const Stored product(place(), {rows, width}, gap);
      run(context(),
          SwiGluBackward{.gate_up = in, .grad_out = grad_t, .grad_gate_up = result, .product = product});
      EXPECT_EQ(result.read(), separate);
      EXPECT_LT(relative_error(product.read(), swiglu(in_double(gate_up), rows, width)),
                tolerance(1, storage()));
      EXPECT_TRUE(product.surroundings_untouched());
      run(context(),
          SwiGluBackward{.gate_up = in, .grad_out = grad_t, .grad_gate_up = in, .product = grad_t});
      EXPECT_EQ(in.read(), separate) << "in place";
      EXPECT_EQ(grad_t.read(), product.read()) << "in place";
    }
  }
}

// Far from zero the sigmoid is 0 or 1, not NaN.
TEST_P(PointwiseTest, SwiGluHoldsAtTheEnds) {
  const Stored in(place(), {1, 8}, {-1e4F, 1e4F, -90.0F, 90.0F, 1.0F, 1.0F, 1.0F, 1.0F}),
      out(place(), {1, 4});
  run(context(), SwiGlu{.gate_up = in, .out = out});
  const auto values = out.read();
  EXPECT_NEAR(values[0], 0.0F, 1e-30F);
  EXPECT_EQ(values[1], stored({1e4F})[0]);
  EXPECT_NEAR(values[2], 0.0F, 1e-30F);
  EXPECT_EQ(values[3], 90.0F);
}

}  // namespace
}  // namespace sl::test
