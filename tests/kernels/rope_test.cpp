// Rotation of query and key heads, alone and together with the writing of keys and values to their pages.
#include <algorithm>

#include "tests/kernels/on_devices.hpp"

namespace sl::test {
namespace {

using RopeTest = OnDevices;
SL_ON_DEVICES(RopeTest);

size_t index(int64_t row, int64_t column, int64_t width) { return static_cast<size_t>(row * width + column); }

std::vector<float> frequencies_of(int64_t head_dim) {
  std::vector<float> frequencies;
  for (int64_t i = 0; i < head_dim / 2; ++i)
    frequencies.push_back(std::pow(10000.0F, -2.0F * static_cast<float>(i) / static_cast<float>(head_dim)));
  return frequencies;
}

std::vector<int32_t> positions_of(int64_t rows) {
  const int32_t chosen[] = {0, 1, 7, 4095, 16383, 131071};
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < rows; ++t)
    positions.push_back(t < 6 ? chosen[t] : static_cast<int32_t>(t * 7919 % 32768));
  return positions;
}

struct Heads {
  int64_t rows, rotated, all, dim;
  int64_t width() const { return all * dim; }
};

std::vector<double> rotated(const std::vector<float>& x, const std::vector<int32_t>& positions,
                            const Heads& heads, double magnitude) {
  auto result = in_double(x);
  const auto frequencies = frequencies_of(heads.dim);
  const int64_t half = heads.dim / 2;
  for (int64_t t = 0; t < heads.rows; ++t) {
    for (int64_t head = 0; head < heads.rotated; ++head) {
      for (int64_t i = 0; i < half; ++i) {
        // The angle itself is a product of floats, as in the models' own code.
        const double angle = static_cast<double>(static_cast<float>(positions[static_cast<size_t>(t)]) *
                                                 frequencies[static_cast<size_t>(i)]);
        double& first = result[index(t, head * heads.dim + i, heads.width())];
        double& second = result[index(t, head * heads.dim + half + i, heads.width())];
        const double a = first, b = second;
        first = magnitude * (a * std::cos(angle) - b * std::sin(angle));
        second = magnitude * (b * std::cos(angle) + a * std::sin(angle));
      }
    }
  }
  return result;
}

TEST_P(RopeTest, RotatesTheFirstHeadsAndTurnsBack) {
  const std::vector<Heads> cases = {{5, 3, 4, 2}, {6, 3, 4, 6},    {5, 3, 4, 64},    {1, 1, 1, 8},
                                    {0, 2, 3, 8}, {70, 8, 10, 40}, {33, 32, 36, 128}};
  for (const Heads& heads : cases) {
    for (const int64_t gap : {0, 3}) {
      SCOPED_TRACE(testing::Message() << heads.rows << " rows, " << heads.all << "x" << heads.dim);
      const auto x = floats(heads.rows * heads.width(), 1);
      const auto positions = positions_of(heads.rows);
      const Stored qkv(place(), {heads.rows, heads.width()}, x, gap);
      const Guarded<float> frequencies(device(), {heads.dim / 2}, frequencies_of(heads.dim));
      const Guarded<int32_t> positions_t(device(), {heads.rows}, positions);
      Rope op{.qkv = qkv,
              .positions = positions_t,
              .frequencies = frequencies,
              .heads = heads.rotated,
              .head_dim = heads.dim,
              .magnitude = 1.25F};
      run(context(), op);
      EXPECT_LT(relative_error(qkv.read(), rotated(x, positions, heads, 1.25)), tolerance(2, storage()));
      EXPECT_TRUE(qkv.surroundings_untouched());

      op.inverse = true;
      op.magnitude = 0.8F;
      run(context(), op);
      EXPECT_LT(relative_error(qkv.read(), x), tolerance(4, storage(), 2));
    }
  }
}

struct PageCase {
  int64_t rows, queries, keys, dim, page_tokens;
};

TEST_P(RopeTest, StoresRotatedKeysAndValuesInTheirSlots) {
  const std::vector<PageCase> cases = {{4, 4, 2, 6, 4},    {1, 1, 1, 8, 1},      {0, 2, 1, 8, 4},
                                       {37, 9, 3, 64, 16}, {50, 28, 4, 128, 16}, {33, 32, 8, 128, 64},
                                       {21, 6, 1, 40, 8}};
  for (const auto& [rows, queries, keys, dim, page_tokens] : cases) {
    for (const int64_t gap : {0, 1, 8}) {
      SCOPED_TRACE(testing::Message()
                   << rows << " rows, " << queries << "/" << keys << "x" << dim << " gap " << gap);
      const Heads heads{rows, queries + keys, queries + 2 * keys, dim};
      const int64_t pages = rows / page_tokens + 3, cells = pages * keys * page_tokens * dim;
      const auto qkv = floats(rows * heads.width(), 1), before = floats(cells, 2);
      const auto positions = positions_of(rows);
      std::vector<int32_t> slots;  // distinct, in no order, some skipped
      for (int64_t t = 0; t < rows; ++t)
        slots.push_back(t % 5 == 1 ? -1 : static_cast<int32_t>(pages * page_tokens - 1 - t));
      const Stored qkv_t(place(), {rows, heads.width()}, qkv, gap);
      const Stored key_pages(place(), {pages, keys, page_tokens, dim}, before);
      const Stored value_pages(place(), {pages, keys, page_tokens, dim}, before);
      const Guarded<float> frequencies(device(), {dim / 2}, frequencies_of(dim));
      const Guarded<int32_t> positions_t(device(), {rows}, positions), slots_t(device(), {rows}, slots);
      run(context(), RopeStoreKv{.qkv = qkv_t,
                                 .positions = positions_t,
                                 .frequencies = frequencies,
                                 .magnitude = 1.25F,
                                 .slots = slots_t,
                                 .key_pages = key_pages,
                                 .value_pages = value_pages});
      const auto after = qkv_t.read();
      EXPECT_LT(relative_error(after, rotated(qkv, positions, heads, 1.25)), tolerance(2, storage()));
      // What is stored is what the row holds now, to the bit.
      auto expected_keys = before, expected_values = before;
      for (int64_t t = 0; t < rows; ++t) {
        const int64_t slot = slots[static_cast<size_t>(t)];
        if (slot < 0) continue;
        for (int64_t h = 0; h < keys; ++h) {
          for (int64_t d = 0; d < dim; ++d) {
            const auto at = static_cast<size_t>(
                ((slot / page_tokens * keys + h) * page_tokens + slot % page_tokens) * dim + d);
            expected_keys[at] = after[index(t, (queries + h) * dim + d, heads.width())];
            expected_values[at] = qkv[index(t, (queries + keys + h) * dim + d, heads.width())];
          }
        }
      }
      EXPECT_EQ(key_pages.read(), expected_keys);
      EXPECT_EQ(value_pages.read(), expected_values);
      EXPECT_TRUE(qkv_t.surroundings_untouched() && key_pages.surroundings_untouched() &&
                  value_pages.surroundings_untouched());
    }
  }
}

// One rotation, whichever operation does it.
TEST_P(RopeTest, BothOperationsRotateAlike) {
  const int64_t rows = 9, dim = 128, width = 8 * dim;
  const auto x = floats(rows * width, 1);
  const Guarded<float> frequencies(device(), {dim / 2}, frequencies_of(dim));
  const Guarded<int32_t> positions(device(), {rows}, positions_of(rows));
  const Guarded<int32_t> nowhere(device(), {rows}, std::vector<int32_t>(static_cast<size_t>(rows), -1));
  const Stored one(place(), {rows, width}, x), other(place(), {rows, width}, x);
  const Stored pages(place(), {1, 1, 16, dim});
  run(context(),
      Rope{.qkv = one, .positions = positions, .frequencies = frequencies, .heads = 7, .head_dim = dim});
  run(context(), RopeStoreKv{.qkv = other,
                             .positions = positions,
                             .frequencies = frequencies,
                             .slots = nowhere,
                             .key_pages = pages,
                             .value_pages = pages});
  EXPECT_EQ(one.read(), other.read());
}

TEST_P(RopeTest, RefusesWhatDoesNotFit) {
  const Stored qkv(place(), {4, 32}, floats(128, 1)), pages(place(), {3, 1, 4, 8}, floats(96, 2));
  const Guarded<float> frequencies(device(), {4}, frequencies_of(8)), few(device(), {3});
  const Guarded<int32_t> positions(device(), {4}, {0, 1, 2, 3});
  RopeStoreKv op{.qkv = qkv,
                 .positions = positions,
                 .frequencies = frequencies,
                 .slots = positions,
                 .key_pages = pages,
                 .value_pages = pages};
  EXPECT_NO_THROW(run(context(), op));
  op.frequencies = few;
  EXPECT_THROW(run(context(), op), BugError);
  EXPECT_THROW(
      run(context(),
          Rope{.qkv = qkv, .positions = positions, .frequencies = frequencies, .heads = 5, .head_dim = 8}),
      BugError);
  if (!on_host()) return;
  const Guarded<int32_t> outside(device(), {4}, {0, 1, 2, 12});
  op.frequencies = frequencies;
  op.slots = outside;
  EXPECT_THROW(run(context(), op), BugError);
}

}  // namespace
}  // namespace sl::test
