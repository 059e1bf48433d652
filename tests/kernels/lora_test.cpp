#include "kernels/ops.hpp"
#include "tests/support.hpp"

namespace sl::test {
namespace {

using LoraTest = OnDevices;
SL_ON_DEVICES(LoraTest);

struct Adapter {
  int64_t begin, end, rank;
  float scale;
  std::vector<float> a, b;
};

TEST_P(LoraTest, AddsEachSegmentsProductAndLeavesTheRest) {
  const int64_t rows = 57, n_in = 70, n_out = 101;
  std::vector<Adapter> adapters = {
      {2, 30, 8, 2.0F, {}, {}}, {31, 32, 3, 0.5F, {}, {}}, {40, 40, 8, 1.0F, {}, {}}};
  const auto x = random_floats(rows * n_in, 1), before = random_floats(rows * n_out, 2);
  const Guarded<float> x_t(device(), {rows, n_in}, x, 3), out(device(), {rows, n_out}, before, 5);
  const Guarded<float> scratch(device(), {rows, 8});
  auto expected = in_double(before);
  std::vector<Guarded<float>> tensors;
  std::vector<LoraSegment> segments;
  for (Adapter& adapter : adapters) {
    adapter.a = random_floats(adapter.rank * n_in, 3);
    adapter.b = random_floats(n_out * adapter.rank, 4);
    tensors.emplace_back(device(), std::initializer_list<int64_t>{adapter.rank, n_in}, adapter.a);
    tensors.emplace_back(device(), std::initializer_list<int64_t>{n_out, adapter.rank}, adapter.b);
    segments.push_back(
        {adapter.begin, adapter.end, tensors[tensors.size() - 2], tensors.back(), adapter.scale});
    for (int64_t t = adapter.begin; t < adapter.end; ++t) {
      for (int64_t r = 0; r < adapter.rank; ++r) {
        double low = 0.0;
        for (int64_t i = 0; i < n_in; ++i)
          low += static_cast<double>(x[static_cast<size_t>(t * n_in + i)]) *
                 static_cast<double>(adapter.a[static_cast<size_t>(r * n_in + i)]);
        for (int64_t o = 0; o < n_out; ++o)
          expected[static_cast<size_t>(t * n_out + o)] +=
              static_cast<double>(adapter.scale) * low *
              static_cast<double>(adapter.b[static_cast<size_t>(o * adapter.rank + r)]);
      }
    }
  }
  run(context(), Lora{.x = x_t, .out = out, .segments = segments, .scratch = scratch});
  EXPECT_LT(relative_error(out.read(), expected), tolerance(n_in));
  EXPECT_TRUE(out.surroundings_untouched() && scratch.surroundings_untouched());
  const auto after = out.read();
  for (int64_t row : {0, 1, 30, 32, 56}) {
    for (int64_t o = 0; o < n_out; ++o) {
      const size_t at = static_cast<size_t>(row * n_out + o);
      EXPECT_EQ(after[at], before[at]) << "row without an adapter";
    }
  }
}

TEST_P(LoraTest, RowsDoNotDependOnTheirSegment) {
  const int64_t rows = 40, n_in = 96, n_out = 70;
  const auto x = random_floats(rows * n_in, 1);
  const Guarded<float> a(device(), {8, n_in}, random_floats(8 * n_in, 2));
  const Guarded<float> b(device(), {n_out, 8}, random_floats(n_out * 8, 3));
  const Guarded<float> x_t(device(), {rows, n_in}, x), scratch(device(), {rows, 8});
  const Guarded<float> whole(device(), {rows, n_out}, std::vector<float>(static_cast<size_t>(rows * n_out)));
  const Guarded<float> pieces(device(), {rows, n_out}, std::vector<float>(static_cast<size_t>(rows * n_out)));
  run(deterministic(), Lora{.x = x_t, .out = whole, .segments = {{0, rows, a, b, 2.0F}}, .scratch = scratch});
  run(deterministic(), Lora{.x = x_t,
                            .out = pieces,
                            .segments = {{0, 1, a, b, 2.0F}, {1, 8, a, b, 2.0F}, {8, rows, a, b, 2.0F}},
                            .scratch = scratch});
  EXPECT_EQ(pieces.read(), whole.read());
}

TEST_P(LoraTest, RefusesASegmentOutsideTheRows) {
  const Guarded<float> x(device(), {4, 6}), out(device(), {4, 5}), scratch(device(), {4, 2});
  const Guarded<float> a(device(), {2, 6}), b(device(), {5, 2});
  EXPECT_THROW(run(context(), Lora{.x = x, .out = out, .segments = {{2, 5, a, b, 1.0F}}, .scratch = scratch}),
               BugError);
  const Guarded<float> wide_a(device(), {3, 6}), wide_b(device(), {5, 3});
  EXPECT_THROW(run(context(),
                   Lora{.x = x, .out = out, .segments = {{0, 4, wide_a, wide_b, 1.0F}}, .scratch = scratch}),
               BugError);
}

}  // namespace
}  // namespace sl::test
