// Products, against plain double sums, against the host's own products, and to the bit where they must be.
#include <omp.h>

#include "tests/kernels/on_devices.hpp"

namespace sl::test {
namespace {

using GemmTest = OnDevices;
SL_ON_DEVICES(GemmTest);

struct Sizes {
  int64_t m, n, k;
};

// op(a) x op(b), all dense, in double.
std::vector<double> product(const std::vector<float>& a, const std::vector<float>& b, const Sizes& s,
                            bool transpose_a, bool transpose_b) {
  std::vector<double> out(static_cast<size_t>(s.m * s.n), 0.0);
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      for (int64_t p = 0; p < s.k; ++p) {
        const float left = a[static_cast<size_t>(transpose_a ? p * s.m + i : i * s.k + p)];
        const float right = b[static_cast<size_t>(transpose_b ? j * s.k + p : p * s.n + j)];
        out[static_cast<size_t>(i * s.n + j)] += static_cast<double>(left) * static_cast<double>(right);
      }
    }
  }
  return out;
}

struct Case {
  bool transpose_a, transpose_b, deterministic;
  int64_t gap;
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (int bits = 0; bits < 8; ++bits) {
    for (int64_t gap : {0, 5}) cases.push_back({(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, gap});
  }
  return cases;
}

// The dtypes that results may have: the storage dtype, and f32.
std::vector<DType> result_types(DType storage) {
  return storage == DType::f32 ? std::vector{DType::f32} : std::vector{storage, DType::f32};
}

TEST_P(GemmTest, MatchesTheSumsForAllLayouts) {
  const std::vector<Sizes> sizes = {{1, 1, 1},   {1, 37, 19},  {2, 5, 3},     {5, 33, 64},  {7, 70, 65},
                                    {8, 48, 16}, {9, 49, 130}, {33, 97, 129}, {200, 50, 31}};
  for (const Case& c : all_cases()) {
    for (const Sizes& s : sizes) {
      const auto a = floats(s.m * s.k, 1), b = floats(s.k * s.n, 2);
      const auto shape = [](bool flip, int64_t x, int64_t y) {
        return flip ? std::pair(y, x) : std::pair(x, y);
      };
      const auto [a_rows, a_columns] = shape(c.transpose_a, s.m, s.k);
      const auto [b_rows, b_columns] = shape(c.transpose_b, s.k, s.n);
      const Stored at(place(), {a_rows, a_columns}, a, c.gap), bt(place(), {b_rows, b_columns}, b, c.gap);
      for (const DType result : result_types(storage())) {
        SCOPED_TRACE(testing::Message()
                     << s.m << "x" << s.n << "x" << s.k << " ta " << c.transpose_a << " tb " << c.transpose_b
                     << " det " << c.deterministic << " gap " << c.gap << " to " << name_of(result));
        // The output holds NaN at first: beta 0 must not read it.
        const Stored out({device(), result}, {s.m, s.n}, c.gap);
        Context here = context();
        here.deterministic = c.deterministic;
        run(here,
            Gemm{.a = at, .b = bt, .out = out, .transpose_a = c.transpose_a, .transpose_b = c.transpose_b});
        EXPECT_LT(relative_error(out.read(), product(a, b, s, c.transpose_a, c.transpose_b)),
                  tolerance(s.k, result));
        EXPECT_TRUE(out.surroundings_untouched());
      }
    }
  }
}

// Layers of models at the numbers of rows of decoding, prompts and training, and the products of a backward
// pass, against the host's products in fixed order.
TEST_P(GemmTest, MatchesTheHostAtTheSizesOfModels) {
  struct Product {
    Sizes sizes;
    bool transpose_a, transpose_b;
  };
  const std::vector<Product> products = {
      {{1, 4608, 3584}, false, true},  {{7, 3584, 3584}, false, true}, {{64, 1184, 3584}, false, true},
      {{64, 448, 18944}, false, true}, {{130, 600, 896}, false, true}, {{257, 1000, 576}, false, true},
      {{300, 896, 576}, false, false}, {{576, 192, 700}, true, false}, {{16, 32064, 64}, false, true},
      {{1000, 16, 3584}, false, true},
  };
  for (const auto& [s, transpose_a, transpose_b] : products) {
    const auto a = floats(s.m * s.k, 1), b = floats(s.k * s.n, 2);
    const auto multiply = [&, s = s, transpose_a = transpose_a, transpose_b = transpose_b](
                              Context here, const Place& where, DType result) {
      const Stored at(where, {transpose_a ? s.k : s.m, transpose_a ? s.m : s.k}, a);
      const Stored bt(where, {transpose_b ? s.n : s.k, transpose_b ? s.k : s.n}, b);
      const Stored out({where.device, result}, {s.m, s.n});
      run(here, Gemm{.a = at, .b = bt, .out = out, .transpose_a = transpose_a, .transpose_b = transpose_b});
      EXPECT_TRUE(out.surroundings_untouched());
      return out.read();
    };
    const auto expected = multiply({.deterministic = true}, {}, DType::f32);
    for (const DType result : result_types(storage())) {
      for (const Context& here : {context(), deterministic()}) {
        EXPECT_LT(relative_error(multiply(here, place(), result), expected), tolerance(s.k, result))
            << s.m << "x" << s.n << "x" << s.k << " to " << name_of(result) << " det " << here.deterministic;
      }
    }
  }
}

TEST_P(GemmTest, ScalesAccumulatesAndAddsTheBiasExactlyOnIntegers) {
  for (const Case& c : all_cases()) {
    for (int64_t m : {1, 4, 30}) {
      const Sizes s{m, 21, 18};
      const auto a = small_integers(s.m * s.k, 1), b = small_integers(s.k * s.n, 2);
      const auto before = small_integers(s.m * s.n, 3), bias = small_integers(s.n, 4);
      const auto products = product(a, b, s, c.transpose_a, c.transpose_b);
      const Stored at(place(), {c.transpose_a ? s.k : s.m, c.transpose_a ? s.m : s.k}, a);
      const Stored bt(place(), {c.transpose_b ? s.n : s.k, c.transpose_b ? s.k : s.n}, b);
      const Stored bias_t(place(), {s.n}, bias);
      for (const DType result : result_types(storage())) {
        for (const bool with_bias : {false, true}) {
          // Besides, once with the addend elsewhere than in out.
          for (const auto& [beta, apart] :
               {std::pair{0.0F, false}, {1.0F, false}, {-2.0F, false}, {3.0F, true}}) {
            const Place result_place{device(), result};
            Stored out(result_place, {s.m, s.n}, c.gap);
            const Stored addend(result_place, {s.m, s.n}, before, c.gap);
            if (beta != 0.0F && !apart) out.write(before);
            Context here = context();
            here.deterministic = c.deterministic;
            run(here, Gemm{.a = at,
                           .b = bt,
                           .out = out,
                           .transpose_a = c.transpose_a,
                           .transpose_b = c.transpose_b,
                           .alpha = 0.5F,
                           .beta = beta,
                           .bias = with_bias ? bias_t.tensor() : Tensor(),
                           .addend = apart ? addend.tensor() : Tensor()});
            std::vector<float> expected(products.size());
            for (size_t i = 0; i < expected.size(); ++i)
              expected[i] = 0.5F * static_cast<float>(products[i]) +
                            (beta == 0.0F ? 0.0F : beta * before[i]) +
                            (with_bias ? bias[i % static_cast<size_t>(s.n)] : 0.0F);
            // Sums are exact; only the result is rounded.
            if (result == storage()) expected = stored(expected);
            EXPECT_EQ(out.read(), expected)
                << "beta " << beta << " bias " << with_bias << " m " << m << " to " << name_of(result);
            EXPECT_TRUE(out.surroundings_untouched());
          }
        }
      }
    }
  }
}

TEST_P(GemmTest, HandlesEmptyDimensions) {
  const Stored a(place(), {0, 8}), b(place(), {5, 8}, random_floats(40, 1)), none(place(), {0, 5});
  run(context(), Gemm{.a = a, .b = b, .out = none, .transpose_b = true});
  EXPECT_TRUE(none.surroundings_untouched());
  // No terms: the product is zero, and the bias remains.
  const Stored empty_a(place(), {3, 0}), empty_b(place(), {5, 0});
  const Stored out(place(), {3, 5}), bias(place(), {5}, {1, 2, 3, 4, 5});
  run(context(), Gemm{.a = empty_a, .b = empty_b, .out = out, .transpose_b = true});
  EXPECT_EQ(out.read(), std::vector<float>(15, 0.0F));
  run(context(), Gemm{.a = empty_a, .b = empty_b, .out = out, .transpose_b = true, .bias = bias});
  EXPECT_EQ(out.read(), (std::vector<float>{1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5}));
}

TEST_P(GemmTest, NamesTheDimensionThatDisagrees) {
  const Stored a(place(), {3, 8}), b(place(), {5, 7}), out(place(), {3, 5});
  try {
    run(context(), Gemm{.a = a, .b = b, .out = out, .transpose_b = true});
    FAIL() << "accepted";
  } catch (const BugError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("Gemm: b is " + std::string(name_of(storage())) + "[5, 7]"), std::string::npos)
        << text;
    EXPECT_NE(text.find("dimension 1 (K) must be 8"), std::string::npos) << text;
  }
}

// Sets the number of threads for a scope.
class Threads {
 public:
  explicit Threads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
  ~Threads() { omp_set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

// In deterministic mode the bits of a row depend on the row alone: not on the number of rows, its place among
// them, the number of threads, or on how the columns are split over ranks.
TEST_P(GemmTest, DeterministicRowsDoNotDependOnTheBatch) {
  const std::vector<std::pair<int64_t, int64_t>> shapes = {{960, 576},   {576, 576}, {3072, 576}, {576, 1536},
                                                           {49152, 576}, {101, 77},  {448, 3584}};
  std::mt19937 generator(11);
  for (const auto& [n, k] : shapes) {
    constexpr int64_t most = 61;
    const int64_t largest = on_host() ? most : 600;  // rows of a batch: a GPU has kernels by their number
    const auto x = floats(most * k, 3), w = floats(n * k, 4);
    const Stored wt(place(), {n, k}, w), all(place(), {most, k}, x), expected(place(), {most, n});
    {
      const Threads one(1);
      run(deterministic(), Gemm{.a = all, .b = wt, .out = expected, .transpose_b = true});
    }
    const auto wanted = expected.read();
    const int rounds = n > 10000 ? 2 : 6;
    for (int round = 0; round < rounds; ++round) {
      const Threads threads(1 + round % 2);
      const int64_t m = round == 0 ? 1 : std::uniform_int_distribution<int64_t>(1, largest)(generator);
      std::vector<float> chosen;
      std::vector<float> rows;
      for (int64_t i = 0; i < m; ++i) {
        const int64_t row = std::uniform_int_distribution<int64_t>(0, most - 1)(generator);
        chosen.insert(chosen.end(), x.begin() + row * k, x.begin() + (row + 1) * k);
        rows.insert(rows.end(), wanted.begin() + row * n, wanted.begin() + (row + 1) * n);
      }
      const Stored batch(place(), {m, k}, chosen), out(place(), {m, n});
      run(deterministic(), Gemm{.a = batch, .b = wt, .out = out, .transpose_b = true});
      EXPECT_EQ(out.read(), rows) << n << "x" << k << " with " << m << " rows";
      const int64_t split = n / 3;
      const Stored left(place(), {m, split}), right(place(), {m, n - split});
      run(deterministic(),
          Gemm{.a = batch, .b = wt.tensor().rows(0, split), .out = left, .transpose_b = true});
      run(deterministic(),
          Gemm{.a = batch, .b = wt.tensor().rows(split, n), .out = right, .transpose_b = true});
      const auto lefts = left.read(), rights = right.read();
      std::vector<float> joined;
      for (int64_t i = 0; i < m; ++i) {
        joined.insert(joined.end(), lefts.begin() + i * split, lefts.begin() + (i + 1) * split);
        joined.insert(joined.end(), rights.begin() + i * (n - split), rights.begin() + (i + 1) * (n - split));
      }
      EXPECT_EQ(joined, rows) << n << "x" << k << " in two column ranges";
    }
  }
}

}  // namespace
}  // namespace sl::test
