// Attention over packed sequences and its gradient, against plain double sums and against the host.
#include "tests/kernels/attention_reference.hpp"
#include "tests/kernels/on_devices.hpp"

namespace sl::test {
namespace {

using PackedAttentionTest = OnDevices;
SL_ON_DEVICES(PackedAttentionTest);

struct PackedCase {
  Heads heads;
  std::vector<int32_t> offsets;
  int64_t rows() const { return offsets.back(); }
  int64_t out_width() const { return heads.queries * heads.dim; }
  float scale() const { return 1.0F / std::sqrt(static_cast<float>(heads.dim)); }
};

struct Packed {
  std::vector<float> out, log_sum_exp, grad;
};

// Forward and backward. `gap`: floats between the rows of the inputs and of the gradient.
Packed run_packed(const Context& here, DType storage, const PackedCase& c, const std::vector<float>& qkv,
                  const std::vector<float>& grad_out, int64_t gap) {
  const Place place{here.device, storage};
  const Heads& heads = c.heads;
  const Stored qkv_t(place, {c.rows(), heads.width()}, qkv, gap);
  const Stored grad_out_t(place, {c.rows(), c.out_width()}, grad_out, gap);
  const Stored out(place, {c.rows(), c.out_width()}, gap), grad(place, {c.rows(), heads.width()}, gap);
  const Guarded<float> log_sum_exp(here.device, {c.rows(), heads.queries});
  const Guarded<int32_t> offsets(here.device, {static_cast<int64_t>(c.offsets.size())}, c.offsets);
  run(here, PackedAttention{.qkv = qkv_t,
                            .offsets = offsets,
                            .query_heads = heads.queries,
                            .key_heads = heads.keys,
                            .scale = c.scale(),
                            .out = out,
                            .log_sum_exp = log_sum_exp});
  run(here, PackedAttentionBackward{.qkv = qkv_t,
                                    .offsets = offsets,
                                    .query_heads = heads.queries,
                                    .key_heads = heads.keys,
                                    .scale = c.scale(),
                                    .out = out,
                                    .log_sum_exp = log_sum_exp,
                                    .grad_out = grad_out_t,
                                    .grad_qkv = grad});
  EXPECT_TRUE(out.surroundings_untouched() && log_sum_exp.surroundings_untouched() &&
              grad.surroundings_untouched());
  return {out.read(), log_sum_exp.read(), grad.read()};
}

std::vector<double> rows_of_sequence(const std::vector<float>& x, int64_t begin, int64_t end, int64_t width) {
  return {x.begin() + begin * width, x.begin() + end * width};
}

void append(std::vector<double>& to, const std::vector<double>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

// Heads alone, grouped and shared; dimensions that no vector divides; sequences that are empty, of one row,
// and longer than tiles of queries and keys; the head dimensions of models.
std::vector<PackedCase> packed_cases() {
  return {{{1, 1, 3}, {0, 1}},
          {{4, 2, 8}, {0, 5, 5, 6, 20}},
          {{3, 1, 64}, {0, 64, 129}},
          {{6, 3, 20}, {0, 33, 70, 71}},
          {{2, 1, 16}, {0, 330, 400}},
          {{2, 2, 4}, {0}},
          {{4, 4, 128}, {0, 128, 255, 256}},
          {{7, 1, 128}, {0, 1, 200}},
          {{2, 1, 64}, {0, 0, 300, 300}}};
}

TEST_P(PackedAttentionTest, ForwardAndBackwardMatchTheDefinition) {
  for (const PackedCase& c : packed_cases()) {
    const Heads& heads = c.heads;
    const double scale = static_cast<double>(c.scale());
    const auto qkv = floats(c.rows() * heads.width(), 1), grad_out = floats(c.rows() * c.out_width(), 2);
    std::vector<double> wanted_out, wanted_sums, wanted_grad;
    for (size_t s = 0; s + 1 < c.offsets.size(); ++s) {
      const int64_t begin = c.offsets[s], end = c.offsets[s + 1];
      const auto part = rows_of_sequence(qkv, begin, end, heads.width());
      const Attended one = attend(part, end - begin, heads, scale);
      append(wanted_out, one.out);
      append(wanted_sums, one.log_sum_exp);
      append(wanted_grad, attention_gradient(part, rows_of_sequence(grad_out, begin, end, c.out_width()),
                                             end - begin, heads, scale));
    }
    for (const int64_t gap : {0, 5, 8}) {
      SCOPED_TRACE(testing::Message() << heads.queries << "/" << heads.keys << "x" << heads.dim << " rows "
                                      << c.rows() << " gap " << gap);
      const Packed found = run_packed(context(), storage(), c, qkv, grad_out, gap);
      // Stored on the way: the probabilities; for the gradient also the output and the scores' gradient.
      EXPECT_LT(relative_error(found.out, wanted_out), tolerance(heads.dim, storage(), 2));
      EXPECT_LT(relative_error(found.log_sum_exp, wanted_sums), tolerance(heads.dim));
      EXPECT_LT(relative_error(found.grad, wanted_grad), tolerance(heads.dim, storage(), 4));
    }
  }
}

TEST(AttentionReference, ItsGradientAgreesWithFiniteDifferences) {
  const Heads heads{4, 2, 3};
  const auto qkv = in_double(random_floats(6 * heads.width(), 1));
  const auto grad_out = in_double(random_floats(6 * 12, 2));
  const auto loss = [&](const std::vector<double>& at) {
    const Attended one = attend(at, 6, heads, 0.7);
    double sum = 0.0;
    for (size_t i = 0; i < one.out.size(); ++i) sum += one.out[i] * grad_out[i];
    return sum;
  };
  EXPECT_LT(relative_error(attention_gradient(qkv, grad_out, 6, heads, 0.7), finite_differences(loss, qkv)),
            1e-8);
}

// Sequences of thousands of tokens, with short ones between them.
TEST_P(PackedAttentionTest, LongSequencesMatchTheHost) {
  if (on_host()) GTEST_SKIP() << "the host is what the others are compared with";
  for (const PackedCase& c : {PackedCase{{3, 1, 128}, {0, 1900, 1901, 3000}},
                              PackedCase{{2, 1, 64}, {0, 17, 2500}}, PackedCase{{2, 1, 32}, {0, 1500}}}) {
    const Heads& heads = c.heads;
    const auto qkv = floats(c.rows() * heads.width(), 1), grad_out = floats(c.rows() * c.out_width(), 2);
    const Packed expected = run_packed({}, DType::f32, c, qkv, grad_out, 0);
    const Packed found = run_packed(context(), storage(), c, qkv, grad_out, 0);
    SCOPED_TRACE(testing::Message() << heads.queries << "/" << heads.keys << "x" << heads.dim);
    EXPECT_LT(relative_error(found.out, expected.out), tolerance(heads.dim, storage(), 2));
    EXPECT_LT(relative_error(found.log_sum_exp, expected.log_sum_exp), tolerance(heads.dim));
    EXPECT_LT(relative_error(found.grad, expected.grad), tolerance(heads.dim, storage(), 4));
  }
}

}  // namespace
}  // namespace sl::test
