// Operations that move whole rows: embedding, gathering, what a step of rollouts does around the model.
#include <algorithm>

#include "tests/kernels/on_devices.hpp"

namespace sl::test {
namespace {

using RowsTest = OnDevices;
SL_ON_DEVICES(RowsTest);

std::vector<int32_t> random_indices(int64_t n, int32_t begin, int32_t end, uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int32_t> uniform(begin, end - 1);
  std::vector<int32_t> indices(static_cast<size_t>(n));
  for (int32_t& index : indices) index = uniform(generator);
  return indices;
}

// Widths that no vector divides, and those of models.
struct Shape {
  int64_t rows, width;
};
const std::vector<Shape> shapes = {{0, 8}, {1, 1}, {5, 7}, {33, 64}, {3, 3584}, {130, 258}};

TEST_P(RowsTest, EmbeddingTakesOnlyTheRowsHere) {
  for (const auto& [rows, width] : shapes) {
    for (const int64_t gap : {0, 3}) {
      const int64_t first = 10, vocabulary = 29;
      const auto table = floats(vocabulary * width, 1);
      auto tokens = random_indices(rows, 5, 45, 2);
      if (rows > 2) tokens[0] = 9, tokens[1] = 10, tokens[2] = 38;
      const Stored table_t(place(), {vocabulary, width}, table, gap);
      const Guarded<float> out(device(), {rows, width}, gap);
      const Guarded<int32_t> tokens_t(device(), {rows}, tokens);
      run(context(), Embedding{.tokens = tokens_t, .table = table_t, .first_row = first, .out = out});
      std::vector<float> expected(static_cast<size_t>(rows * width), 0.0F);
      for (int64_t t = 0; t < rows; ++t) {
        const int64_t from = tokens[static_cast<size_t>(t)] - first;
        if (from < 0 || from >= vocabulary) continue;
        std::copy_n(table.begin() + from * width, width, expected.begin() + t * width);
      }
      EXPECT_EQ(out.read(), expected) << rows << "x" << width;
      EXPECT_TRUE(out.surroundings_untouched());
    }
  }
}

TEST_P(RowsTest, EmbeddingBackwardAddsEveryOccurrence) {
  const int64_t first = 5, vocabulary = 31;
  for (const auto& [rows, width] : shapes) {
    const auto grad = small_integers(rows * width, 1), before = small_integers(vocabulary * width, 2);
    auto tokens = random_indices(rows, 0, 40, 3);
    // One token that comes often, as line ends do.
    for (int64_t t = 0; t < rows; t += 4) tokens[static_cast<size_t>(t)] = 6;
    std::vector<float> expected = before;
    for (int64_t t = 0; t < rows; ++t) {
      const int64_t to = tokens[static_cast<size_t>(t)] - first;
      if (to < 0 || to >= vocabulary) continue;
      for (int64_t i = 0; i < width; ++i)
        expected[static_cast<size_t>(to * width + i)] += grad[static_cast<size_t>(t * width + i)];
    }
    const Guarded<int32_t> tokens_t(device(), {rows}, tokens);
    for (const DType sums : {storage(), DType::f32}) {
      const Stored grad_t(place(), {rows, width}, grad);
      const Stored table({device(), sums}, {vocabulary, width}, before);
      run(context(),
          EmbeddingBackward{.tokens = tokens_t, .grad_out = grad_t, .first_row = first, .grad_table = table});
      EXPECT_EQ(table.read(), expected) << rows << "x" << width;
      EXPECT_TRUE(table.surroundings_untouched());
    }
  }
}

TEST_P(RowsTest, GatherAndScatterMoveRows) {
  for (const auto& [rows, width] : shapes) {
    const int64_t picks = (rows + 1) / 2;
    std::vector<int32_t> indices;  // distinct, in no order
    for (int64_t i = 0; i < picks; ++i)
      indices.push_back(static_cast<int32_t>(i % 2 == 0 ? rows - 1 - i / 2 : i / 2));
    const auto x = small_integers(rows * width, 1), more = small_integers(picks * width, 2);
    const Stored x_t(place(), {rows, width}, x, 4), picked(place(), {picks, width});
    const Stored more_t(place(), {picks, width}, more, 1);
    const Guarded<int32_t> indices_t(device(), {picks}, indices);
    run(context(), GatherRows{.x = x_t, .indices = indices_t, .out = picked});
    std::vector<float> gathered, scattered = x;
    for (int64_t i = 0; i < picks; ++i) {
      const int64_t row = indices[static_cast<size_t>(i)];
      gathered.insert(gathered.end(), x.begin() + row * width, x.begin() + (row + 1) * width);
      for (int64_t j = 0; j < width; ++j)
        scattered[static_cast<size_t>(row * width + j)] += more[static_cast<size_t>(i * width + j)];
    }
    EXPECT_EQ(picked.read(), gathered);
    EXPECT_TRUE(picked.surroundings_untouched());
    run(context(), ScatterAddRows{.x = more_t, .indices = indices_t, .out = x_t});
    EXPECT_EQ(x_t.read(), scattered);
    EXPECT_TRUE(x_t.surroundings_untouched());

    // Of the residual stream, which is f32, into the storage dtype and back.
    const Guarded<float> stream(device(), {rows, width}, x);
    run(context(), GatherRows{.x = stream, .indices = indices_t, .out = picked});
    EXPECT_EQ(picked.read(), gathered);
    run(context(), ScatterAddRows{.x = more_t, .indices = indices_t, .out = stream});
    EXPECT_EQ(stream.read(), scattered);
  }
}

TEST_P(RowsTest, GatherMayRepeatRows) {
  const auto x = floats(3 * 5, 1);
  const Stored x_t(place(), {3, 5}, x), out(place(), {4, 5});
  const Guarded<int32_t> indices(device(), {4}, {1, 1, 2, 1});
  run(context(), GatherRows{.x = x_t, .indices = indices, .out = out});
  std::vector<float> expected;
  for (const int row : {1, 1, 2, 1})
    expected.insert(expected.end(), x.begin() + row * 5, x.begin() + row * 5 + 5);
  EXPECT_EQ(out.read(), expected);
}

TEST_P(RowsTest, FillInTokensTakesWhatTheStepBeforeDrew) {
  const std::vector<int32_t> planned = {7, -1, 0, -3, -2, 151000, -3};
  const Guarded<int32_t> tokens(device(), {7}, planned), drawn(device(), {3}, {100, 200, 300});
  run(context(), FillInTokens{.tokens = tokens, .drawn = drawn});
  EXPECT_EQ(tokens.read(), (std::vector<int32_t>{7, 100, 0, 300, 200, 151000, 300}));
  EXPECT_TRUE(tokens.surroundings_untouched());
  const Guarded<int32_t> none(device(), {0});
  run(context(), FillInTokens{.tokens = none, .drawn = none});
  if (!on_host()) return;
  const Guarded<int32_t> outside(device(), {1}, {-4});
  EXPECT_THROW(run(context(), FillInTokens{.tokens = outside, .drawn = drawn}), BugError);
}

TEST_P(RowsTest, ClearRowsLeavesTheOthers) {
  for (const int64_t width : {1, 37, 4752}) {
    const int64_t count = 9;
    std::vector<uint32_t> before(static_cast<size_t>(count * width)), expected;
    for (size_t i = 0; i < before.size(); ++i) before[i] = static_cast<uint32_t>(i) * 2654435761U + 1;
    expected = before;
    const std::vector<int32_t> rows = {8, 0, 3};
    for (const int32_t row : rows) std::fill_n(expected.begin() + row * width, width, 0U);
    const Guarded<uint32_t> out(device(), {count, width}, before, 2);
    const Guarded<int32_t> rows_t(device(), {3}, rows), none(device(), {0});
    run(context(), ClearRows{.rows = none, .out = out});
    EXPECT_EQ(out.read(), before);
    run(context(), ClearRows{.rows = rows_t, .out = out});
    EXPECT_EQ(out.read(), expected);
    EXPECT_TRUE(out.surroundings_untouched());
  }
  if (!on_host()) return;
  const Guarded<uint32_t> out(device(), {2, 3});
  const Guarded<int32_t> outside(device(), {1}, {2});
  EXPECT_THROW(run(context(), ClearRows{.rows = outside, .out = out}), BugError);
}

TEST_P(RowsTest, CopyRowsLeavesTheOthers) {
  for (const int64_t width : {1, 37, 64, 4096, 4099}) {
    const int64_t count = 9;
    const std::vector<float> before = floats(count * width, 5);
    std::vector<float> expected = before;
    const std::vector<int32_t> from = {8, 0, 8}, to = {2, 7, 3};
    for (size_t i = 0; i < to.size(); ++i)
      std::copy_n(before.begin() + from[i] * width, width, expected.begin() + to[i] * width);
    for (const int64_t gap : {0, 3}) {
      const Stored x(place(), {count, width}, before, gap);
      const Guarded<int32_t> from_t(device(), {3}, from), to_t(device(), {3}, to), none(device(), {0});
      run(context(), CopyRows{.from = none, .to = none, .x = x});
      EXPECT_EQ(x.read(), before);
      run(context(), CopyRows{.from = from_t, .to = to_t, .x = x});
      EXPECT_EQ(x.read(), expected);
      EXPECT_TRUE(x.surroundings_untouched());
    }
  }
  if (!on_host()) return;
  const Stored x(place(), {2, 3});
  const Guarded<int32_t> inside(device(), {1}, {1}), outside(device(), {1}, {2});
  EXPECT_THROW(run(context(), CopyRows{.from = inside, .to = outside, .x = x}), BugError);
  EXPECT_THROW(run(context(), CopyRows{.from = inside, .to = inside, .x = x}), BugError);
}

TEST_P(RowsTest, RefusesMissingAndForeignTensors) {
  const Stored x(place(), {2, 4}), out(place(), {2, 4});
  const Guarded<int32_t> indices(device(), {2}, {0, 1});
  EXPECT_THROW(run(context(), AddRmsNorm{.residual = x, .delta = {}, .weight = {}, .out = out}), BugError);
  const Device other = device() == Device::cpu ? Device::debug : Device::cpu;
  const Guarded<float> elsewhere(other, {2, 4});
  EXPECT_THROW(run(context(), GatherRows{.x = elsewhere, .indices = indices, .out = out}), BugError);
  EXPECT_THROW(run(context(), GatherRows{.x = x, .indices = x, .out = out}), BugError);
  if (!on_host()) return;
  const Guarded<int32_t> outside(device(), {2}, {0, 2});
  EXPECT_THROW(run(context(), GatherRows{.x = x, .indices = outside, .out = out}), BugError);
  EXPECT_THROW(run(context(), ScatterAddRows{.x = x, .indices = outside, .out = out}), BugError);
}

}  // namespace
}  // namespace sl::test
