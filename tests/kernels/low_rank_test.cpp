// What low-rank adapters add to the outputs that operations read, and their gradients, against plain double
// sums.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/kernels/on_devices.hpp"
#include "tests/kernels/swiglu_reference.hpp"

namespace sl::test {
namespace {

int64_t padded(int64_t rank) { return (rank + 7) / 8 * 8; }

// Adapters of a layer of several projections with the outputs of a batch's rows. Numbers of low that are not
// of a row's own adapter are NaN.
class AdaptedLayer {
 public:
  struct Sizes {
    int64_t rows;
    std::vector<int64_t> outputs;  // of the projections
    std::vector<int64_t> ranks;    // of the adapters
    int64_t gap = 0;               // between the rows of low
  };

  AdaptedLayer(const Context& context, const Place& place, const Sizes& sizes, auto&& floats)
      : sizes_(sizes), rank_(0), all_outputs_(0) {
    std::vector<int64_t> begins;
    for (const int64_t rank : sizes.ranks) {
      begins.push_back(rank_);
      rank_ += padded(rank);
    }
    for (const int64_t outputs : sizes.outputs) all_outputs_ += outputs;
    const auto projections = static_cast<int64_t>(sizes.outputs.size());
    // Every third row has no adapter; the others take turns.
    for (int64_t t = 0; t < sizes.rows; ++t) {
      const auto which = static_cast<size_t>(t / 3) % sizes.ranks.size();
      const bool none = t % 3 == 2;
      ranges_.push_back(none ? 0 : static_cast<int32_t>(begins[which]));
      ranges_.push_back(none ? 0 : static_cast<int32_t>(begins[which] + padded(sizes.ranks[which])));
    }
    low_ = floats(sizes.rows * projections * rank_, 5);
    for (int64_t t = 0; t < sizes.rows; ++t) {
      for (int64_t i = 0; i < projections * rank_; ++i) {
        if (!own(t, i % rank_))
          low_[static_cast<size_t>(t * projections * rank_ + i)] = std::numeric_limits<float>::quiet_NaN();
      }
    }
    // b of all adapters, one after the other, and packed.
    b_.assign(static_cast<size_t>(all_outputs_ * rank_), 0.0F);
    packed_ = std::make_unique<Stored>(place, std::initializer_list<int64_t>{rank_ / 2, 2 * all_outputs_});
    for (size_t which = 0; which < sizes.ranks.size(); ++which) {
      const int64_t rank = sizes.ranks[which], begin = begins[which];
      const float scale = which % 2 == 0 ? 2.0F : 0.5F;
      int64_t output = 0;
      for (size_t p = 0; p < sizes.outputs.size(); ++p) {
        const int64_t outputs = sizes.outputs[p];
        const auto b = floats(outputs * rank, 30 + static_cast<uint32_t>(10 * which + p));
        run(context, PackLowRank{.b = Stored(place, {outputs, rank}, b),
                                 .scale = scale,
                                 .out = packed_->tensor()
                                            .rows(begin / 2, (begin + padded(rank)) / 2)
                                            .columns(2 * output, 2 * (output + outputs))});
        for (int64_t o = 0; o < outputs; ++o) {
          for (int64_t r = 0; r < rank; ++r)
            b_[static_cast<size_t>((output + o) * rank_ + begin + r)] =
                scale * b[static_cast<size_t>(o * rank + r)];
        }
        output += outputs;
      }
    }
    low_tensor_ = std::make_unique<Stored>(
        place, std::initializer_list<int64_t>{sizes.rows, projections * rank_}, low_, sizes.gap);
    ranges_tensor_ = std::make_unique<Guarded<int32_t>>(
        place.device, std::initializer_list<int64_t>{sizes.rows, 2}, ranges_);
  }

  LowRank op(int64_t begin, int64_t end) const {
    return {.low = low_tensor_->tensor().rows(begin, end),
            .b = *packed_,
            .ranges = ranges_tensor_->tensor().rows(begin, end)};
  }
  LowRank op() const { return op(0, sizes_.rows); }
  const Stored& packed() const { return *packed_; }
  const std::vector<float>& b() const { return b_; }
  int64_t rank() const { return rank_; }
  bool has_adapter(int64_t t) const { return range(t, 0) < range(t, 1); }

  // `outputs` with what the adapters add.
  std::vector<double> added_to(const std::vector<float>& outputs) const {
    auto result = in_double(outputs);
    for (int64_t t = 0; t < sizes_.rows; ++t) {
      int64_t first = 0;
      for (size_t p = 0; p < sizes_.outputs.size(); first += sizes_.outputs[p++]) {
        for (int64_t o = first; o < first + sizes_.outputs[p]; ++o) {
          for (int64_t r = range(t, 0); r < range(t, 1); ++r)
            result[static_cast<size_t>(t * all_outputs_ + o)] +=
                static_cast<double>(low_[static_cast<size_t>(
                    (t * static_cast<int64_t>(sizes_.outputs.size()) + static_cast<int64_t>(p)) * rank_ +
                    r)]) *
                static_cast<double>(b_[static_cast<size_t>(o * rank_ + r)]);
        }
      }
    }
    return result;
  }

 private:
  int64_t range(int64_t t, int64_t end) const { return ranges_[static_cast<size_t>(2 * t + end)]; }
  bool own(int64_t t, int64_t r) const { return range(t, 0) <= r && r < range(t, 1); }

  Sizes sizes_;
  int64_t rank_, all_outputs_;
  std::vector<int32_t> ranges_;
  std::vector<float> low_, b_;
  std::unique_ptr<Stored> packed_, low_tensor_;
  std::unique_ptr<Guarded<int32_t>> ranges_tensor_;
};

class LowRankTest : public OnDevices {
 protected:
  AdaptedLayer layer_of(const AdaptedLayer::Sizes& sizes) const {
    return {context(), place(), sizes, [this](int64_t n, uint32_t seed) { return floats(n, seed); }};
  }
};
SL_ON_DEVICES(LowRankTest);

TEST_P(LowRankTest, PackingPutsPairsOfTheRankTogetherAndFillsUpWithZeros) {
  const AdaptedLayer layer = layer_of({1, {3, 20}, {8, 5, 1}});
  const auto packed = layer.packed().read();
  for (int64_t r = 0; r < layer.rank(); ++r) {
    for (int64_t o = 0; o < 23; ++o)
      EXPECT_EQ(packed[static_cast<size_t>(r / 2 * 46 + 2 * o + r % 2)],
                layer.b()[static_cast<size_t>(o * layer.rank() + r)])
          << r << " " << o;
  }
  EXPECT_TRUE(layer.packed().surroundings_untouched());
}

const std::vector<std::vector<int64_t>> all_ranks = {{8, 8}, {8}, {5, 32, 16, 8}, {64, 4, 256}};

TEST_P(LowRankTest, AddRmsNormAddsToDelta) {
  struct Shape {
    int64_t rows, width, gap;
  };
  for (const auto& [rows, width, gap] : {Shape{0, 8, 0},
                                         {5, 33, 0},
                                         {37, 576, 0},
                                         {20, 3584, 8},
                                         {9, 512, 3},
                                         {4, 5120, 0},
                                         {300, 64, 8},
                                         {2, 9000, 0}}) {
    for (const auto& ranks : all_ranks) {
      SCOPED_TRACE(testing::Message() << rows << "x" << width << " " << ranks.size() << " adapters");
      const AdaptedLayer layer = layer_of({rows, {width}, ranks, gap});
      const auto x = random_floats(rows * width, 1);
      const auto delta = floats(rows * width, 2), weight = floats(width, 3);
      const Guarded<float> residual(device(), {rows, width}, x, gap);
      const Stored out(place(), {rows, width}, gap), delta_t(place(), {rows, width}, delta, gap);
      run(context(), AddRmsNorm{.residual = residual,
                                .delta = delta_t,
                                .weight = Stored(place(), {width}, weight),
                                .epsilon = 1e-6F,
                                .out = out,
                                .adapters = layer.op()});
      auto expected = layer.added_to(delta);
      for (size_t i = 0; i < x.size(); ++i) expected[i] += static_cast<double>(x[i]);
      EXPECT_LT(relative_error(residual.read(), expected), tolerance(layer.rank()));
      for (int64_t t = 0; t < rows; ++t) {
        double squares = 0.0;
        auto* row = expected.data() + t * width;
        for (int64_t i = 0; i < width; ++i) squares += row[i] * row[i];
        for (int64_t i = 0; i < width; ++i)
          row[i] *= static_cast<double>(weight[static_cast<size_t>(i)]) /
                    std::sqrt(squares / static_cast<double>(width) + 1e-6);
      }
      EXPECT_LT(relative_error(out.read(), expected), tolerance(layer.rank(), storage()));
      EXPECT_TRUE(residual.surroundings_untouched() && out.surroundings_untouched());
    }
  }
}

TEST_P(LowRankTest, SwiGluAddsToGateAndUp) {
  struct Shape {
    int64_t rows, width, gap;
  };
  for (const auto& [rows, width, gap] : {Shape{0, 8, 0},
                                         {5, 33, 0},
                                         {1, 1536, 0},
                                         {64, 1536, 8},
                                         {40, 18944, 0},
                                         {9, 64, 3},
                                         {1000, 40, 8},
                                         {17, 8, 0}}) {
    for (const auto& ranks : all_ranks) {
      SCOPED_TRACE(testing::Message() << rows << "x" << width << " " << ranks.size() << " adapters");
      const AdaptedLayer layer = layer_of({rows, {width, width}, ranks, gap});
      const auto gate_up = floats(rows * 2 * width, 1, 3.0F);
      const Stored in(place(), {rows, 2 * width}, gate_up, gap), out(place(), {rows, width}, gap);
      run(context(), SwiGlu{.gate_up = in, .out = out, .adapters = layer.op()});
      const auto sums = layer.added_to(gate_up);
      EXPECT_LT(relative_error(out.read(), swiglu(sums, rows, width)), tolerance(layer.rank(), storage()));
      EXPECT_TRUE(out.surroundings_untouched());

      EXPECT_EQ(in.read(), gate_up) << "left as it was";

      // The gradient, of the sums, and the same activation once more.
      const auto grad = floats(rows * width, 7);
      const Stored grad_out(place(), {rows, width}, grad, gap), product(place(), {rows, width}, gap);
      run(context(), SwiGluBackward{.gate_up = in,
                                    .grad_out = grad_out,
                                    .grad_gate_up = in,
                                    .product = product,
                                    .adapters = layer.op()});
      EXPECT_LT(relative_error(in.read(), swiglu_gradient(sums, in_double(grad), rows, width)),
                tolerance(layer.rank(), storage()));
      EXPECT_LT(relative_error(product.read(), out.read()), tolerance(1, storage()));
      EXPECT_TRUE(in.surroundings_untouched() && product.surroundings_untouched());
    }
  }
}

// One adapter that every row has: its gradients with the activation's, where they may come on the way, and
// by operations of their own.
TEST_P(LowRankTest, SwiGluAndItsGradientServeAnAdapterOfAllRows) {
  struct Shape {
    int64_t rows, width, rank, gap;
  };
  for (const Shape& shape : {Shape{0, 64, 8, 0},
                             {1, 8, 8, 0},
                             {37, 40, 8, 8},
                             {700, 1536, 8, 0},
                             {90, 272, 16, 16},
                             {700, 1280, 16, 0},
                             {1300, 2304, 8, 8},
                             {20, 18944, 8, 0},
                             {65, 33, 8, 3},
                             {130, 192, 24, 0}}) {
    const int64_t rows = shape.rows, width = shape.width, rank = shape.rank, gap = shape.gap;
    SCOPED_TRACE(testing::Message() << rows << "x" << width << " rank " << rank << " gap " << gap);
    constexpr float scale = 2.0F;
    const auto gate_up = floats(rows * 2 * width, 1, 3.0F), grad = floats(rows * width, 2),
               low = floats(rows * 2 * rank, 3), down_low = floats(rows * rank, 8);
    const auto before_a = random_floats(rank * width, 9);
    const std::array<std::vector<float>, 2> b = {floats(width * rank, 4), floats(width * rank, 5)},
                                            before = {random_floats(width * rank, 6),
                                                      random_floats(width * rank, 7)};
    const Stored packed(place(), {rank / 2, 4 * width});
    const std::array<Stored, 2> b_t = {Stored(place(), {width, rank}, b[0]),
                                       Stored(place(), {width, rank}, b[1])};
    for (size_t p = 0; p < 2; ++p) {
      const int64_t begin = 2 * width * static_cast<int64_t>(p);
      run(context(),
          PackLowRank{.b = b_t[p], .scale = scale, .out = packed.tensor().columns(begin, begin + 2 * width)});
    }
    std::vector<int32_t> all;
    for (int64_t t = 0; t < rows; ++t) all.insert(all.end(), {0, static_cast<int32_t>(rank)});
    const Guarded<int32_t> ranges(device(), {rows, 2}, all);

    // Both ways from the same rows.
    struct Result {
      std::vector<float> gate_up, low, grad_b[2], grad_a;
    };
    const auto result = [&](bool on_the_way) {
      const Stored rows_t(place(), {rows, 2 * width}, gate_up, gap), out(place(), {rows, width}, grad, gap),
          low_t(place(), {rows, 2 * rank}, low, gap), down(place(), {rows, rank}, down_low, gap);
      const Guarded<float> grad_a(device(), {rank, width}, before_a);
      const std::array<Guarded<float>, 2> grad_b = {Guarded<float>(device(), {width, rank}, before[0]),
                                                    Guarded<float>(device(), {width, rank}, before[1])};
      const auto gradient = [&](int64_t p) {
        const auto i = static_cast<size_t>(p);
        return LowRankBackward{.grad_out = rows_t.tensor().columns(p * width, (p + 1) * width),
                               .low = low_t.tensor().columns(p * rank, (p + 1) * rank),
                               .b = b_t[i],
                               .scale = scale,
                               .grad_b = grad_b[i],
                               .grad_low = low_t.tensor().columns(p * rank, (p + 1) * rank)};
      };
      SwiGluBackward op = {.gate_up = rows_t,
                           .grad_out = out,
                           .grad_gate_up = rows_t,
                           .product = out,
                           .adapters = {.low = low_t, .b = packed, .ranges = ranges}};
      const Gemm of_a = {.a = down, .b = out, .out = grad_a, .transpose_a = true, .beta = 1.0F};
      if (on_the_way) {
        op.gate = gradient(0), op.up = gradient(1);
        op.down_grad_low = of_a.a, op.down_grad_a = of_a.out;
      }
      run(context(), op);
      if (!on_the_way) {
        run(context(), LowRankBackwards{std::array{gradient(0), gradient(1)}});
        run(context(), of_a);
      }
      EXPECT_TRUE(rows_t.surroundings_untouched() && out.surroundings_untouched() &&
                  low_t.surroundings_untouched() && grad_b[0].surroundings_untouched() &&
                  grad_b[1].surroundings_untouched() && grad_a.surroundings_untouched());
      return Result{rows_t.read(), low_t.read(), {grad_b[0].read(), grad_b[1].read()}, grad_a.read()};
    };
    const Result one = result(true), other = result(false);

    // The activation, and the low-rank numbers of the projection that reads it.
    const auto a = floats(rank * width, 10);
    const Stored in(place(), {rows, 2 * width}, gate_up, gap), out(place(), {rows, width}, gap),
        numbers(place(), {rows, rank}, gap);
    run(context(),
        SwiGlu{
            .gate_up = in,
            .out = out,
            .adapters = {.low = Stored(place(), {rows, 2 * rank}, low, gap), .b = packed, .ranges = ranges},
            .down_a = Stored(place(), {rank, width}, a),
            .down_low = numbers});
    const auto activated = in_double(out.read());
    std::vector<double> expected_numbers(static_cast<size_t>(rows * rank), 0.0);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t r = 0; r < rank; ++r) {
        for (int64_t i = 0; i < width; ++i)
          expected_numbers[static_cast<size_t>(t * rank + r)] +=
              activated[static_cast<size_t>(t * width + i)] *
              static_cast<double>(a[static_cast<size_t>(r * width + i)]);
      }
    }
    EXPECT_LT(relative_error(numbers.read(), expected_numbers), tolerance(width, storage()));
    EXPECT_TRUE(numbers.surroundings_untouched() && out.surroundings_untouched());

    auto sums = in_double(gate_up);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t i = 0; i < 2 * width; ++i) {
        for (int64_t r = 0; r < rank; ++r)
          sums[static_cast<size_t>(t * 2 * width + i)] +=
              static_cast<double>(scale) *
              static_cast<double>(low[static_cast<size_t>((2 * t + i / width) * rank + r)]) *
              static_cast<double>(
                  b[static_cast<size_t>(i / width)][static_cast<size_t>(i % width * rank + r)]);
      }
    }
    const auto expected = swiglu_gradient(sums, in_double(grad), rows, width);
    std::array<std::vector<double>, 2> expected_b = {in_double(before[0]), in_double(before[1])};
    const auto products = swiglu(sums, rows, width);
    auto expected_a = in_double(before_a);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t i = 0; i < width; ++i) {
        const double product = products[static_cast<size_t>(t * width + i)];
        for (int64_t r = 0; r < rank; ++r)
          expected_a[static_cast<size_t>(r * width + i)] +=
              product * static_cast<double>(down_low[static_cast<size_t>(t * rank + r)]);
      }
    }
    std::vector<double> expected_low(low.size(), 0.0);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t i = 0; i < 2 * width; ++i) {
        const double g = static_cast<double>(scale) * expected[static_cast<size_t>(t * 2 * width + i)];
        for (int64_t r = 0; r < rank; ++r) {
          const auto at = static_cast<size_t>((2 * t + i / width) * rank + r),
                     of_b = static_cast<size_t>(i % width * rank + r);
          expected_b[static_cast<size_t>(i / width)][of_b] += g * static_cast<double>(low[at]);
          expected_low[at] += g * static_cast<double>(b[static_cast<size_t>(i / width)][of_b]);
        }
      }
    }
    for (const Result& got : {one, other}) {
      EXPECT_LT(relative_error(got.gate_up, expected), tolerance(rank, storage()));
      EXPECT_LT(relative_error(got.low, expected_low), tolerance(2 * width, storage()));
      for (size_t p = 0; p < 2; ++p)
        EXPECT_LT(relative_error(got.grad_b[p], expected_b[p]), tolerance(rows + 1, storage()));
      EXPECT_LT(relative_error(got.grad_a, expected_a), tolerance(rows + 1, storage()));
    }
  }
}

TEST_P(LowRankTest, RopeStoreKvAddsToQueriesKeysAndValues) {
  struct Shape {
    int64_t rows, queries, keys, dim, gap;
  };
  constexpr int64_t page_tokens = 16;
  for (const auto& [rows, queries, keys, dim, gap] : {Shape{0, 2, 1, 8, 0},
                                                      {4, 4, 2, 6, 0},
                                                      {37, 9, 3, 64, 8},
                                                      {20, 28, 4, 128, 0},
                                                      {7, 64, 8, 128, 8},
                                                      {11, 6, 1, 40, 1}}) {
    for (const auto& ranks : all_ranks) {
      SCOPED_TRACE(testing::Message() << rows << " rows, " << queries << "/" << keys << "x" << dim);
      const int64_t width = (queries + 2 * keys) * dim, half = dim / 2;
      const int64_t pages = rows / page_tokens + 1, cells = pages * keys * page_tokens * dim;
      const AdaptedLayer layer = layer_of({rows, {queries * dim, keys * dim, keys * dim}, ranks, gap});
      const auto qkv = floats(rows * width, 1), before = floats(cells, 2);
      std::vector<int32_t> positions, slots;
      for (int64_t t = 0; t < rows; ++t) {
        positions.push_back(static_cast<int32_t>(3 * t));
        slots.push_back(t % 5 == 1 ? -1 : static_cast<int32_t>(t));
      }
      std::vector<float> frequencies;
      for (int64_t i = 0; i < half; ++i) frequencies.push_back(1.0F / static_cast<float>(1 + i * i));
      const Stored qkv_t(place(), {rows, width}, qkv, gap);
      const Stored key_pages(place(), {pages, keys, page_tokens, dim}, before);
      const Stored value_pages(place(), {pages, keys, page_tokens, dim}, before);
      run(context(), RopeStoreKv{.qkv = qkv_t,
                                 .positions = Guarded<int32_t>(device(), {rows}, positions),
                                 .frequencies = Guarded<float>(device(), {half}, frequencies),
                                 .magnitude = 1.25F,
                                 .slots = Guarded<int32_t>(device(), {rows}, slots),
                                 .key_pages = key_pages,
                                 .value_pages = value_pages,
                                 .adapters = layer.op()});
      auto expected = layer.added_to(qkv);
      for (int64_t t = 0; t < rows; ++t) {
        for (int64_t head = 0; head < queries + keys; ++head) {
          for (int64_t i = 0; i < half; ++i) {
            const double angle = static_cast<double>(static_cast<float>(positions[static_cast<size_t>(t)]) *
                                                     frequencies[static_cast<size_t>(i)]);
            double& first = expected[static_cast<size_t>(t * width + head * dim + i)];
            double& second = expected[static_cast<size_t>(t * width + head * dim + half + i)];
            const double a = first, b = second;
            first = 1.25 * (a * std::cos(angle) - b * std::sin(angle));
            second = 1.25 * (b * std::cos(angle) + a * std::sin(angle));
          }
        }
      }
      const auto after = qkv_t.read();
      EXPECT_LT(relative_error(after, expected), tolerance(layer.rank(), storage()));
      // What is stored is what the row holds now, to the bit.
      auto expected_keys = before, expected_values = before;
      for (int64_t t = 0; t < rows; ++t) {
        if (slots[static_cast<size_t>(t)] < 0) continue;
        for (int64_t h = 0; h < keys; ++h) {
          for (int64_t i = 0; i < dim; ++i) {
            const auto to =
                static_cast<size_t>(((t / page_tokens * keys + h) * page_tokens + t % page_tokens) * dim + i);
            expected_keys[to] = after[static_cast<size_t>(t * width + (queries + h) * dim + i)];
            expected_values[to] = after[static_cast<size_t>(t * width + (queries + keys + h) * dim + i)];
          }
        }
      }
      EXPECT_EQ(key_pages.read(), expected_keys);
      EXPECT_EQ(value_pages.read(), expected_values);
      EXPECT_TRUE(qkv_t.surroundings_untouched());
    }
  }
}

TEST_P(LowRankTest, GradientsOfBAndOfTheLowRankNumbers) {
  struct Shape {
    int64_t rows;
    std::vector<int64_t> outputs;  // of each projection
    int64_t rank, gap;
  };
  for (const auto& [rows, outputs, rank, gap] : {Shape{0, {64}, 8, 0},
                                                 {1, {64, 64}, 8, 0},
                                                 {37, {192}, 8, 8},
                                                 {700, {576, 192, 192}, 8, 0},
                                                 {513, {128}, 16, 72},
                                                 {1100, {1920, 64, 64}, 8, 16},
                                                 {2049, {3584, 512, 512}, 16, 0},
                                                 {600, {64, 896, 128}, 8, 8},
                                                 {70, {64, 64, 64, 128}, 8, 0},
                                                 {300, {48}, 8, 8},
                                                 {90, {128, 40}, 16, 0},
                                                 {65, {128}, 5, 3},
                                                 {90, {64, 64}, 24, 0}}) {
    SCOPED_TRACE(testing::Message() << rows << "x" << testing::PrintToString(outputs) << " rank " << rank
                                    << " gap " << gap);
    constexpr float scale = 2.0F;
    // Side by side in the rows of one matrix, as they are in training.
    const auto all = std::accumulate(outputs.begin(), outputs.end(), int64_t{0});
    const auto projections = static_cast<int64_t>(outputs.size());
    const auto grad = floats(rows * all, 1), low = floats(rows * projections * rank, 2),
               b = floats(all * rank, 3), before = random_floats(all * rank, 4);
    const Stored grad_out(place(), {rows, all}, grad, gap),
        low_and_grad(place(), {rows, projections * rank}, low, gap), b_t(place(), {all, rank}, b);
    const Guarded<float> grad_b(device(), {all, rank}, before);
    auto expected_b = in_double(before);
    std::vector<double> expected_low(low.size(), 0.0);
    std::vector<LowRankBackward> gradients;
    int64_t first = 0;
    for (int64_t p = 0; p < projections; ++p) {
      const int64_t end = first + outputs[static_cast<size_t>(p)];
      const Tensor low_of = low_and_grad.tensor().columns(p * rank, (p + 1) * rank);
      gradients.push_back({.grad_out = grad_out.tensor().columns(first, end),
                           .low = low_of,
                           .b = b_t.tensor().rows(first, end),
                           .scale = scale,
                           .grad_b = grad_b.tensor().rows(first, end),
                           .grad_low = low_of});
      for (int64_t t = 0; t < rows; ++t) {
        for (int64_t o = first; o < end; ++o) {
          const double g =
              static_cast<double>(scale) * static_cast<double>(grad[static_cast<size_t>(t * all + o)]);
          for (int64_t r = 0; r < rank; ++r) {
            const auto at = static_cast<size_t>((t * projections + p) * rank + r);
            expected_b[static_cast<size_t>(o * rank + r)] += g * static_cast<double>(low[at]);
            expected_low[at] += g * static_cast<double>(b[static_cast<size_t>(o * rank + r)]);
          }
        }
      }
      first = end;
    }
    run(context(), LowRankBackwards{gradients});
    EXPECT_LT(relative_error(grad_b.read(), expected_b), tolerance(rows + 1));
    EXPECT_LT(relative_error(low_and_grad.read(), expected_low), tolerance(all, storage()));
    EXPECT_TRUE(grad_b.surroundings_untouched() && low_and_grad.surroundings_untouched());
  }
}

// The same bits alone and among others, at every place; and those of the bare model without an adapter.
TEST_P(LowRankTest, ARowDependsOnItselfAndItsAdapter) {
  constexpr int64_t rows = 70, width = 1536, hidden = 896;
  const AdaptedLayer gated = layer_of({rows, {width, width}, {8, 24, 8}}),
                     added = layer_of({rows, {hidden}, {8, 8}});
  const auto gate_up = floats(rows * 2 * width, 1), delta = floats(rows * hidden, 2);
  const Stored weight(place(), {hidden}, floats(hidden, 3));
  const auto part_of = [](const std::vector<float>& all, int64_t columns, int64_t begin, int64_t end) {
    return std::vector<float>(all.begin() + begin * columns, all.begin() + end * columns);
  };
  const auto activation = [&](int64_t begin, int64_t end, bool adapters) {
    const Stored in(place(), {end - begin, 2 * width}, part_of(gate_up, 2 * width, begin, end));
    const Stored out(place(), {end - begin, width});
    run(deterministic(),
        SwiGlu{.gate_up = in, .out = out, .adapters = adapters ? gated.op(begin, end) : LowRank{}});
    return out.read();
  };
  const auto norm = [&](int64_t begin, int64_t end, bool adapters) {
    const Guarded<float> residual(device(), {end - begin, hidden}, part_of(delta, hidden, begin, end));
    const Stored delta_t(place(), {end - begin, hidden}, part_of(delta, hidden, begin, end));
    const Stored out(place(), {end - begin, hidden});
    run(deterministic(), AddRmsNorm{.residual = residual,
                                    .delta = delta_t,
                                    .weight = weight,
                                    .epsilon = 1e-6F,
                                    .out = out,
                                    .adapters = adapters ? added.op(begin, end) : LowRank{}});
    return out.read();
  };
  const auto activations = activation(0, rows, true), norms = norm(0, rows, true);
  for (const int64_t row : {0, 1, 2, 15, 16, 40, 69}) {
    for (const int64_t begin : {row, std::max<int64_t>(row - 5, 0)}) {
      EXPECT_EQ(part_of(activation(begin, row + 1, true), width, row - begin, row + 1 - begin),
                part_of(activations, width, row, row + 1))
          << row;
      EXPECT_EQ(part_of(norm(begin, row + 1, true), hidden, row - begin, row + 1 - begin),
                part_of(norms, hidden, row, row + 1))
          << row;
    }
    if (gated.has_adapter(row)) continue;
    EXPECT_EQ(activation(row, row + 1, false), part_of(activations, width, row, row + 1)) << row;
    EXPECT_EQ(norm(row, row + 1, false), part_of(norms, hidden, row, row + 1)) << row;
  }
}

TEST_P(LowRankTest, RefusesWhatDoesNotFit) {
  const AdaptedLayer layer = layer_of({3, {16}, {8, 8}}), other = layer_of({3, {16}, {8}});
  const Guarded<float> residual(device(), {3, 16}, random_floats(48, 1));
  const Stored delta(place(), {3, 16}, floats(48, 2)), weight(place(), {16}, floats(16, 3)),
      out(place(), {3, 16});
  AddRmsNorm op{.residual = residual,
                .delta = delta,
                .weight = weight,
                .epsilon = 1e-6F,
                .out = out,
                .adapters = layer.op()};
  EXPECT_NO_THROW(run(context(), op));
  op.adapters.b = other.op().b;
  EXPECT_THROW(run(context(), op), BugError);
  op.adapters = layer.op(0, 2);
  EXPECT_THROW(run(context(), op), BugError);
  op.adapters = layer.op();
  op.delta = {};
  EXPECT_THROW(run(context(), op), BugError);
  if (!on_host()) return;
  op.delta = delta;
  const Guarded<int32_t> beyond(device(), {3, 2}, {0, 8, 8, 24, 0, 0});
  op.adapters.ranges = beyond;
  EXPECT_THROW(run(context(), op), BugError);
}

}  // namespace
}  // namespace sl::test
