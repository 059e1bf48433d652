// Attention over pages and over packed sequences, against plain double sums, and its gradient.
#include <algorithm>

#include "kernels/ops.hpp"
#include "tests/support.hpp"

namespace sl::test {
namespace {

using AttentionTest = OnDevices;
SL_ON_DEVICES(AttentionTest);

struct Heads {
  int64_t queries, keys, dim;
  int64_t width() const { return (queries + 2 * keys) * dim; }
};

struct Attended {
  std::vector<double> out, log_sum_exp;
};

// Causal attention over one sequence of packed qkv rows.
Attended attend(const std::vector<double>& qkv, int64_t rows, const Heads& heads, double scale) {
  Attended result{std::vector<double>(static_cast<size_t>(rows * heads.queries * heads.dim), 0.0), {}};
  const auto at = [&](int64_t row, int64_t head, int64_t d) {
    return qkv[static_cast<size_t>(row * heads.width() + head * heads.dim + d)];
  };
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t h = 0; h < heads.queries; ++h) {
      const int64_t key_head = heads.queries + h / (heads.queries / heads.keys);
      std::vector<double> scores;
      for (int64_t j = 0; j <= t; ++j) {
        double score = 0.0;
        for (int64_t d = 0; d < heads.dim; ++d) score += at(t, h, d) * at(j, key_head, d);
        scores.push_back(scale * score);
      }
      const double largest = *std::max_element(scores.begin(), scores.end());
      double total = 0.0;
      for (double score : scores) total += std::exp(score - largest);
      result.log_sum_exp.push_back(largest + std::log(total));
      for (int64_t j = 0; j <= t; ++j) {
        const double p = std::exp(scores[static_cast<size_t>(j)] - result.log_sum_exp.back());
        for (int64_t d = 0; d < heads.dim; ++d)
          result.out[static_cast<size_t>((t * heads.queries + h) * heads.dim + d)] +=
              p * at(j, key_head + heads.keys, d);
      }
    }
  }
  return result;
}

// The gradient of sum(out * grad_out) for one sequence, from the definition of softmax.
std::vector<double> gradient(const std::vector<double>& qkv, const std::vector<double>& grad_out,
                             int64_t rows, const Heads& heads, double scale) {
  std::vector<double> grad(qkv.size(), 0.0);
  const Attended forward = attend(qkv, rows, heads, scale);
  const auto in_qkv = [&](int64_t row, int64_t head) {
    return static_cast<size_t>(row * heads.width() + head * heads.dim);
  };
  const size_t dim = static_cast<size_t>(heads.dim);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t h = 0; h < heads.queries; ++h) {
      const int64_t key_head = heads.queries + h / (heads.queries / heads.keys);
      const size_t row_out = static_cast<size_t>((t * heads.queries + h) * heads.dim);
      double along = 0.0;
      for (size_t d = 0; d < dim; ++d) along += grad_out[row_out + d] * forward.out[row_out + d];
      for (int64_t j = 0; j <= t; ++j) {
        const size_t q = in_qkv(t, h), k = in_qkv(j, key_head), v = in_qkv(j, key_head + heads.keys);
        double score = 0.0, reached = 0.0;
        for (size_t d = 0; d < dim; ++d) {
          score += qkv[q + d] * qkv[k + d];
          reached += grad_out[row_out + d] * qkv[v + d];
        }
        const double p =
            std::exp(scale * score - forward.log_sum_exp[static_cast<size_t>(t * heads.queries + h)]);
        const double grad_score = scale * p * (reached - along);
        for (size_t d = 0; d < dim; ++d) {
          grad[v + d] += p * grad_out[row_out + d];
          grad[q + d] += grad_score * qkv[k + d];
          grad[k + d] += grad_score * qkv[q + d];
        }
      }
    }
  }
  return grad;
}

std::vector<double> rows_of_sequence(const std::vector<float>& x, int64_t begin, int64_t end, int64_t width) {
  return {x.begin() + begin * width, x.begin() + end * width};
}

void append(std::vector<double>& to, const std::vector<double>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

struct PackedCase {
  Heads heads;
  std::vector<int32_t> offsets;
};

// Heads alone, grouped and shared; dimensions that no vector divides; sequences that are empty, of one row,
// and longer than the tiles of 64 queries and 256 keys.
std::vector<PackedCase> packed_cases() {
  return {{{1, 1, 3}, {0, 1}},           {{4, 2, 8}, {0, 5, 5, 6, 20}}, {{3, 1, 64}, {0, 64, 129}},
          {{6, 3, 20}, {0, 33, 70, 71}}, {{2, 1, 16}, {0, 330, 400}},   {{2, 2, 4}, {0}}};
}

TEST_P(AttentionTest, PackedForwardAndBackwardMatchTheDefinition) {
  for (const PackedCase& c : packed_cases()) {
    const Heads& heads = c.heads;
    const int64_t rows = c.offsets.back(), out_width = heads.queries * heads.dim;
    const float scale = 1.0F / std::sqrt(static_cast<float>(heads.dim));
    SCOPED_TRACE(testing::Message() << heads.queries << "/" << heads.keys << "x" << heads.dim << " rows "
                                    << rows);
    const auto qkv = random_floats(rows * heads.width(), 1), grad_out = random_floats(rows * out_width, 2);
    const Guarded<float> qkv_t(device(), {rows, heads.width()}, qkv, 5),
        grad_out_t(device(), {rows, out_width}, grad_out);
    const Guarded<float> out(device(), {rows, out_width}, 3), log_sum_exp(device(), {rows, heads.queries});
    const Guarded<float> grad(device(), {rows, heads.width()});
    const Guarded<int32_t> offsets(device(), {static_cast<int64_t>(c.offsets.size())}, c.offsets);
    run(context(), PackedAttention{.qkv = qkv_t,
                                   .offsets = offsets,
                                   .query_heads = heads.queries,
                                   .key_heads = heads.keys,
                                   .scale = scale,
                                   .out = out,
                                   .log_sum_exp = log_sum_exp});
    run(context(), PackedAttentionBackward{.qkv = qkv_t,
                                           .offsets = offsets,
                                           .query_heads = heads.queries,
                                           .key_heads = heads.keys,
                                           .scale = scale,
                                           .out = out,
                                           .log_sum_exp = log_sum_exp,
                                           .grad_out = grad_out_t,
                                           .grad_qkv = grad});
    std::vector<double> wanted_out, wanted_sums, wanted_grad;
    for (size_t s = 0; s + 1 < c.offsets.size(); ++s) {
      const int64_t begin = c.offsets[s], end = c.offsets[s + 1];
      const auto part = rows_of_sequence(qkv, begin, end, heads.width());
      const Attended one = attend(part, end - begin, heads, static_cast<double>(scale));
      append(wanted_out, one.out);
      append(wanted_sums, one.log_sum_exp);
      append(wanted_grad, gradient(part, rows_of_sequence(grad_out, begin, end, out_width), end - begin,
                                   heads, static_cast<double>(scale)));
    }
    EXPECT_LT(relative_error(out.read(), wanted_out), tolerance(heads.dim));
    EXPECT_LT(relative_error(log_sum_exp.read(), wanted_sums), tolerance(heads.dim));
    EXPECT_LT(relative_error(grad.read(), wanted_grad), tolerance(heads.dim));
    EXPECT_TRUE(out.surroundings_untouched() && log_sum_exp.surroundings_untouched() &&
                grad.surroundings_untouched());
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
  EXPECT_LT(relative_error(gradient(qkv, grad_out, 6, heads, 0.7), finite_differences(loss, qkv)), 1e-8);
}

// Sequences on shuffled pages; `new_rows` of each context are in the batch, the rest was stored before.
struct PagedBatch {
  Heads heads;
  int64_t page_tokens;
  std::vector<int64_t> contexts, new_rows;
};

// The qkv rows of a sequence depend on its seed alone.
std::vector<float> sequence_rows(const Heads& heads, int64_t context, uint32_t seed) {
  return random_floats(context * heads.width(), 100 + seed);
}

std::vector<float> run_paged(const Context& context, const PagedBatch& batch,
                             const std::vector<uint32_t>& seeds) {
  const Heads& heads = batch.heads;
  const int64_t sequences = static_cast<int64_t>(batch.contexts.size());
  int64_t table_width = 1, pages = 1;
  for (int64_t length : batch.contexts) {
    const int64_t used = (length + batch.page_tokens - 1) / batch.page_tokens;
    table_width = std::max(table_width, used);
    pages += used;
  }
  std::vector<int32_t> order(static_cast<size_t>(pages));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::mt19937 generator(5);
  std::shuffle(order.begin(), order.end(), generator);

  // Pages hold NaN where nothing is stored: reading past a context would show.
  const Guarded<float> keys(context.device, {pages, heads.keys, batch.page_tokens, heads.dim});
  const Guarded<float> values(context.device, {pages, heads.keys, batch.page_tokens, heads.dim});
  std::vector<float> rows;
  std::vector<int32_t> query_offsets = {0}, lengths, tables(static_cast<size_t>(sequences * table_width), 0);
  size_t next_page = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const size_t at = static_cast<size_t>(s);
    const int64_t length = batch.contexts[at];
    const auto qkv = sequence_rows(heads, length, seeds[at]);
    std::vector<int32_t> slots;
    for (int64_t t = 0; t < length; ++t) {
      int32_t& page = tables[static_cast<size_t>(s * table_width + t / batch.page_tokens)];
      if (t % batch.page_tokens == 0) page = order[next_page++];
      slots.push_back(static_cast<int32_t>(page * batch.page_tokens + t % batch.page_tokens));
    }
    const Guarded<float> all(context.device, {length, heads.width()}, qkv);
    const Guarded<int32_t> slots_t(context.device, {length}, slots);
    run(context, StoreKv{.qkv = all, .slots = slots_t, .key_pages = keys, .value_pages = values});
    rows.insert(rows.end(), qkv.end() - batch.new_rows[at] * heads.width(), qkv.end());
    query_offsets.push_back(static_cast<int32_t>(query_offsets.back() + batch.new_rows[at]));
    lengths.push_back(static_cast<int32_t>(length));
  }
  const int64_t total = query_offsets.back();
  const Guarded<float> qkv(context.device, {total, heads.width()}, rows, 2);
  const Guarded<float> out(context.device, {total, heads.queries * heads.dim}, 3);
  const Guarded<int32_t> offsets_t(context.device, {sequences + 1}, query_offsets);
  const Guarded<int32_t> lengths_t(context.device, {sequences}, lengths);
  const Guarded<int32_t> tables_t(context.device, {sequences, table_width}, tables);
  run(context, PagedAttention{.qkv = qkv,
                              .key_pages = keys,
                              .value_pages = values,
                              .query_offsets = offsets_t,
                              .context_lengths = lengths_t,
                              .page_tables = tables_t,
                              .query_heads = heads.queries,
                              .scale = 0.3F,
                              .out = out});
  EXPECT_TRUE(out.surroundings_untouched());
  return out.read();
}

TEST_P(AttentionTest, PagedMatchesTheDefinition) {
  const std::vector<PagedBatch> batches = {
      {{1, 1, 3}, 4, {1}, {1}},
      {{4, 2, 8}, 4, {9, 4, 1, 17}, {1, 4, 1, 6}},
      {{9, 3, 64}, 16, {50, 33, 100}, {1, 33, 40}},
      {{6, 1, 20}, 8, {70, 12}, {69, 0}},
      {{32, 2, 16}, 16, {40}, {40}},
      {{2, 2, 4}, 4, {}, {}},
  };
  for (const PagedBatch& batch : batches) {
    const Heads& heads = batch.heads;
    const int64_t out_width = heads.queries * heads.dim;
    std::vector<uint32_t> seeds;
    std::vector<double> expected;
    for (size_t s = 0; s < batch.contexts.size(); ++s) {
      seeds.push_back(static_cast<uint32_t>(s));
      const Attended one =
          attend(in_double(sequence_rows(heads, batch.contexts[s], seeds[s])), batch.contexts[s], heads, 0.3);
      expected.insert(expected.end(), one.out.end() - batch.new_rows[s] * out_width, one.out.end());
    }
    EXPECT_LT(relative_error(run_paged(context(), batch, seeds), expected), tolerance(heads.dim));
  }
}

// Prompt in chunks or token by token, alone or among others: the same bits.
TEST_P(AttentionTest, PagedRowsDependOnTheirContextAlone) {
  const Heads heads{9, 3, 64};
  const int64_t width = heads.queries * heads.dim;
  const auto alone = run_paged(deterministic(), {heads, 16, {75}, {75}}, {7});
  for (int64_t length : {1, 16, 17, 43, 75}) {
    for (int64_t rows : {int64_t{1}, std::min<int64_t>(length, 11), length}) {
      const auto mixed = run_paged(deterministic(), {heads, 16, {20, length, 33}, {20, rows, 1}}, {1, 7, 2});
      const std::vector<float> got(mixed.begin() + 20 * width, mixed.begin() + (20 + rows) * width);
      const std::vector<float> wanted(alone.begin() + (length - rows) * width,
                                      alone.begin() + length * width);
      EXPECT_EQ(got, wanted) << length << " " << rows;
    }
  }
}

TEST_P(AttentionTest, RefusesContextsThatDoNotFit) {
  const Guarded<float> qkv(device(), {1, 12}, random_floats(12, 1)), out(device(), {1, 4});
  const Guarded<float> pages(device(), {2, 1, 4, 4}, random_floats(32, 1));
  const Guarded<int32_t> offsets(device(), {2}, {0, 1});
  const auto attempt = [&](int32_t length, int32_t page) {
    const Guarded<int32_t> lengths(device(), {1}, {length}), table(device(), {1, 1}, {page});
    run(context(), PagedAttention{.qkv = qkv,
                                  .key_pages = pages,
                                  .value_pages = pages,
                                  .query_offsets = offsets,
                                  .context_lengths = lengths,
                                  .page_tables = table,
                                  .query_heads = 1,
                                  .out = out});
  };
  EXPECT_NO_THROW(attempt(4, 1));
  EXPECT_THROW(attempt(5, 1), BugError);
  EXPECT_THROW(attempt(0, 1), BugError);
  EXPECT_THROW(attempt(4, 2), BugError);
}

}  // namespace
}  // namespace sl::test
