// Attention over KV pages, against plain double sums and against the host.
#include <algorithm>

#include "tests/kernels/attention_reference.hpp"
#include "tests/kernels/on_devices.hpp"

namespace sl::test {
namespace {

using PagedAttentionTest = OnDevices;
SL_ON_DEVICES(PagedAttentionTest);

constexpr float scale = 0.3F;

// Sequences on shuffled pages; `new_rows` of each context are in the batch, the rest was stored before.
struct PagedBatch {
  Heads heads;
  int64_t page_tokens;
  std::vector<int64_t> contexts, new_rows;

  int64_t sequences() const { return static_cast<int64_t>(contexts.size()); }
  int64_t pages_of(size_t sequence) const { return (contexts[sequence] + page_tokens - 1) / page_tokens; }
  int64_t longest_context() const { return contexts.empty() ? 1 : *std::ranges::max_element(contexts); }
  int64_t longest_query() const { return new_rows.empty() ? 1 : *std::ranges::max_element(new_rows); }
};

// The qkv rows of a sequence depend on its seed alone.
std::vector<float> sequence_rows(const Heads& heads, int64_t context, uint32_t seed, DType storage) {
  auto rows = random_floats(context * heads.width(), 100 + seed);
  if (storage == DType::bf16) {
    for (float& value : rows) value = static_cast<float>(Bf16(value));
  }
  return rows;
}

// The key and value pages of a batch, and where its sequences are in them. Pages hold NaN where nothing is
// stored: reading past a context would show.
class Pages {
 public:
  Pages(const Context& here, const Place& place, const PagedBatch& batch)
      : keys(place, {count(batch), batch.heads.keys, batch.page_tokens, batch.heads.dim}),
        values(place, {count(batch), batch.heads.keys, batch.page_tokens, batch.heads.dim}),
        here_(here),
        place_(place),
        batch_(batch) {
    for (size_t s = 0; s < batch.contexts.size(); ++s) table_width = std::max(table_width, batch.pages_of(s));
    tables.assign(static_cast<size_t>(batch.sequences() * table_width), 0);
    order_.resize(static_cast<size_t>(count(batch)));
    for (size_t i = 0; i < order_.size(); ++i) order_[i] = static_cast<int32_t>(i);
    std::mt19937 generator(5);
    std::shuffle(order_.begin(), order_.end(), generator);
  }

  // At position 0 nothing is rotated.
  void store(size_t sequence, const std::vector<float>& qkv) {
    const int64_t length = batch_.contexts[sequence], page_tokens = batch_.page_tokens;
    int32_t* const table = &tables[sequence * static_cast<size_t>(table_width)];
    std::vector<int32_t> slots;
    for (int64_t t = 0; t < length; ++t) {
      if (t % page_tokens == 0) table[t / page_tokens] = order_[next_page_++];
      slots.push_back(static_cast<int32_t>(table[t / page_tokens] * page_tokens + t % page_tokens));
    }
    const int64_t half = batch_.heads.dim / 2;
    const Device device = place_.device;
    const Stored all(place_, {length, batch_.heads.width()}, qkv);
    const Guarded<int32_t> slots_t(device, {length}, slots);
    const Guarded<int32_t> origin(device, {length}, std::vector<int32_t>(slots.size(), 0));
    const Guarded<float> frequencies(device, {half}, std::vector<float>(static_cast<size_t>(half), 1.0F));
    run(here_, RopeStoreKv{.qkv = all,
                           .positions = origin,
                           .frequencies = frequencies,
                           .slots = slots_t,
                           .key_pages = keys,
                           .value_pages = values});
  }

  const Stored keys, values;
  std::vector<int32_t> tables;
  int64_t table_width = 1;

 private:
  static int64_t count(const PagedBatch& batch) {
    int64_t pages = 1;
    for (size_t s = 0; s < batch.contexts.size(); ++s) pages += batch.pages_of(s);
    return pages;
  }

  Context here_;
  Place place_;
  const PagedBatch& batch_;
  std::vector<int32_t> order_;
  size_t next_page_ = 0;
};

// `gap`: numbers between the rows of qkv and out. What the sequences hold is of `values`, stored as `place`
// says.
std::vector<float> run_paged(const Context& here, const Place& place, DType values, const PagedBatch& batch,
                             const std::vector<uint32_t>& seeds, int64_t gap = 0) {
  const Heads& heads = batch.heads;
  const int64_t sequences = batch.sequences();
  Pages pages(here, place, batch);
  std::vector<float> rows;
  std::vector<int32_t> query_offsets = {0}, lengths;
  for (size_t s = 0; s < batch.contexts.size(); ++s) {
    const auto qkv = sequence_rows(heads, batch.contexts[s], seeds[s], values);
    pages.store(s, qkv);
    rows.insert(rows.end(), qkv.end() - batch.new_rows[s] * heads.width(), qkv.end());
    query_offsets.push_back(static_cast<int32_t>(query_offsets.back() + batch.new_rows[s]));
    lengths.push_back(static_cast<int32_t>(batch.contexts[s]));
  }
  const int64_t total = query_offsets.back();
  const AttentionWorkspace need = attention_workspace(place.device, total, sequences, batch.longest_context(),
                                                      heads.queries, heads.keys, heads.dim);
  const Stored qkv(place, {total, heads.width()}, rows, gap);
  const Stored out(place, {total, heads.queries * heads.dim}, gap);
  const Guarded<int32_t> offsets_t(place.device, {sequences + 1}, query_offsets);
  const Guarded<int32_t> lengths_t(place.device, {sequences}, lengths);
  const Guarded<int32_t> tables_t(place.device, {sequences, pages.table_width}, pages.tables);
  const Guarded<int32_t> plan(place.device, {need.plan});
  const Guarded<float> scratch(place.device, {need.scratch});
  run(here, PlanPagedAttention{.query_offsets = offsets_t,
                               .context_lengths = lengths_t,
                               .query_heads = heads.queries,
                               .key_heads = heads.keys,
                               .plan = plan});
  const PagedAttention op{.qkv = qkv,
                          .key_pages = pages.keys,
                          .value_pages = pages.values,
                          .query_offsets = offsets_t,
                          .context_lengths = lengths_t,
                          .page_tables = tables_t,
                          .query_heads = heads.queries,
                          .longest_query = batch.longest_query(),
                          .scale = scale,
                          .out = out,
                          .plan = plan,
                          .scratch = scratch};
  run(here, op);
  const auto first = out.read();
  // One plan serves all layers: it and the scratch are as good as new after each.
  run(here, op);
  EXPECT_EQ(out.read(), first);
  EXPECT_TRUE(out.surroundings_untouched() && plan.surroundings_untouched() &&
              scratch.surroundings_untouched());
  return first;
}

std::vector<uint32_t> seeds_of(const PagedBatch& batch) {
  std::vector<uint32_t> seeds;
  for (size_t s = 0; s < batch.contexts.size(); ++s) seeds.push_back(static_cast<uint32_t>(s));
  return seeds;
}

TEST_P(PagedAttentionTest, MatchesTheDefinition) {
  const std::vector<PagedBatch> batches = {
      {{1, 1, 2}, 4, {1}, {1}},
      {{4, 2, 8}, 4, {9, 4, 1, 17}, {1, 4, 1, 6}},
      {{9, 3, 64}, 16, {50, 33, 100}, {1, 33, 40}},
      {{6, 1, 20}, 8, {70, 12}, {69, 0}},
      {{32, 2, 16}, 16, {40}, {40}},
      {{2, 2, 4}, 4, {}, {}},
      {{7, 1, 128}, 16, {1, 2, 16, 17, 300}, {1, 1, 1, 1, 1}},
      {{8, 2, 128}, 64, {129, 65, 64, 3}, {129, 1, 64, 2}},
      {{16, 1, 64}, 32, {90, 200}, {1, 150}},
      {{20, 1, 64}, 16, {70, 33}, {1, 20}},
  };
  for (const PagedBatch& batch : batches) {
    const Heads& heads = batch.heads;
    const int64_t out_width = heads.queries * heads.dim;
    const auto seeds = seeds_of(batch);
    std::vector<double> expected;
    for (size_t s = 0; s < batch.contexts.size(); ++s) {
      const auto rows = sequence_rows(heads, batch.contexts[s], seeds[s], storage());
      const Attended one = attend(in_double(rows), batch.contexts[s], heads, static_cast<double>(scale));
      expected.insert(expected.end(), one.out.end() - batch.new_rows[s] * out_width, one.out.end());
    }
    for (const int64_t gap : {0, 3, 8}) {
      SCOPED_TRACE(testing::Message() << heads.queries << "/" << heads.keys << "x" << heads.dim
                                      << " pages of " << batch.page_tokens << " gap " << gap);
      // Stored on the way: the probabilities.
      EXPECT_LT(relative_error(run_paged(context(), place(), storage(), batch, seeds, gap), expected),
                tolerance(heads.dim, storage(), 2));
    }
  }
}

// Decoding at thousands of tokens, chunks of a long prompt, and both in one batch, with the heads of models.
TEST_P(PagedAttentionTest, LongContextsMatchTheHost) {
  if (on_host()) GTEST_SKIP() << "the host is what the others are compared with";
  const std::vector<PagedBatch> batches = {
      {{28, 4, 128}, 16, {4097}, {1}},
      {{28, 4, 128}, 64, {8192, 1, 3000, 517, 2048}, {1, 1, 1, 1, 1}},
      {{28, 4, 128}, 16, {3000, 2900, 40}, {200, 1, 40}},
      {{32, 8, 128}, 32, {2500, 6001, 700}, {1, 1, 300}},
      {{9, 3, 64}, 16, {5000, 1200, 64, 65}, {1, 129, 64, 1}},
      {{14, 2, 64}, 64, {2047, 2049}, {500, 7}},
      {{4, 1, 32}, 16, {2500, 1300}, {1, 70}},
  };
  for (const PagedBatch& batch : batches) {
    const Heads& heads = batch.heads;
    SCOPED_TRACE(testing::Message() << heads.queries << "/" << heads.keys << "x" << heads.dim
                                    << " first context " << batch.contexts[0]);
    const auto expected = run_paged({}, {}, storage(), batch, seeds_of(batch));
    EXPECT_LT(relative_error(run_paged(context(), place(), storage(), batch, seeds_of(batch)), expected),
              tolerance(heads.dim, storage(), 2));
  }
}

TEST_P(PagedAttentionTest, RandomBatchesMatchTheHost) {
  if (on_host()) GTEST_SKIP() << "the host is what the others are compared with";
  std::mt19937 generator(3);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator);
  };
  for (int round = 0; round < 12; ++round) {
    PagedBatch batch{round % 2 == 0 ? Heads{28, 4, 128} : Heads{6, 2, 64}, round % 3 == 0 ? 64 : 16, {}, {}};
    const int64_t sequences = draw(1, 70);
    for (int64_t s = 0; s < sequences; ++s) {
      batch.contexts.push_back(draw(1, round % 4 == 0 ? 40 : 500));
      const bool decoding = round < 4 || draw(0, 9) < 8;
      batch.new_rows.push_back(decoding ? 1 : draw(1, std::min<int64_t>(batch.contexts.back(), 90)));
    }
    const auto expected = run_paged({}, {}, storage(), batch, seeds_of(batch));
    EXPECT_LT(relative_error(run_paged(context(), place(), storage(), batch, seeds_of(batch)), expected),
              tolerance(batch.heads.dim, storage(), 2))
        << "round " << round;
  }
}

// Prompt in chunks or token by token, alone or among others: the same bits.
TEST_P(PagedAttentionTest, RowsDependOnTheirContextAlone) {
  for (const Heads& heads : {Heads{9, 3, 64}, Heads{7, 1, 128}, Heads{4, 2, 8}}) {
    const int64_t width = heads.queries * heads.dim;
    const auto attend_in_order = [&](const PagedBatch& batch, const std::vector<uint32_t>& seeds) {
      return run_paged(deterministic(), place(), storage(), batch, seeds);
    };
    const auto alone = attend_in_order({heads, 16, {75}, {75}}, {7});
    for (int64_t length : {1, 16, 17, 43, 75}) {
      for (int64_t rows : {int64_t{1}, std::min<int64_t>(length, 11), length}) {
        const auto mixed = attend_in_order({heads, 16, {20, length, 33}, {20, rows, 1}}, {1, 7, 2});
        const std::vector<float> got(mixed.begin() + 20 * width, mixed.begin() + (20 + rows) * width);
        const std::vector<float> wanted(alone.begin() + (length - rows) * width,
                                        alone.begin() + length * width);
        EXPECT_EQ(got, wanted) << heads.dim << ": " << length << " " << rows;
      }
    }
  }
}

TEST_P(PagedAttentionTest, RefusesContextsThatDoNotFit) {
  if (!on_host()) GTEST_SKIP() << "values of index tensors are checked on hosts";
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
                                  .longest_query = 1,
                                  .out = out});
  };
  EXPECT_NO_THROW(attempt(4, 1));
  EXPECT_THROW(attempt(5, 1), BugError);
  EXPECT_THROW(attempt(0, 1), BugError);
  EXPECT_THROW(attempt(4, 2), BugError);
}

}  // namespace
}  // namespace sl::test
