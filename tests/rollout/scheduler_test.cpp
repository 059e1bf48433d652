#include "rollout/scheduler.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/error.hpp"

namespace sl {
namespace {

using Ints = std::vector<int32_t>;
using Ids = std::vector<int64_t>;

Ints tokens_from(int32_t first, int32_t count) {
  Ints tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

Request request_of(Ints prompt, int32_t adapter = -1) {
  Request request;
  request.prompt = std::move(prompt);
  request.adapter = adapter;
  return request;
}

// Plans a step, checks the invariants, and gives every output the token `sampled`.
StepPlan advance(Scheduler& scheduler, int32_t sampled) {
  StepPlan plan;
  scheduler.plan(plan);
  scheduler.check();
  scheduler.take(plan, Ints(plan.outputs.size(), sampled));
  scheduler.check();
  return plan;
}

TEST(Scheduler, AMixedBatchOfPromptsAndDecodingRows) {
  Scheduler scheduler({.max_batch_rows = 8, .max_sequences = 4, .max_positions = 100}, 10, 4);
  scheduler.add(request_of({10, 11, 12, 13, 14}));
  scheduler.add(request_of({20, 21, 22, 23, 24, 25}));

  // All of the first prompt, and what the budget leaves of the second.
  StepPlan plan = advance(scheduler, 15);
  EXPECT_EQ(plan.batch.tokens, (Ints{10, 11, 12, 13, 14, 20, 21, 22}));
  EXPECT_EQ(plan.batch.positions, (Ints{0, 1, 2, 3, 4, 0, 1, 2}));
  EXPECT_EQ(plan.batch.slots, (Ints{0, 1, 2, 3, 4, 8, 9, 10}));
  EXPECT_EQ(plan.batch.query_offsets, (Ints{0, 5, 8}));
  EXPECT_EQ(plan.batch.context_lengths, (Ints{5, 3}));
  EXPECT_EQ(plan.batch.pages_per_sequence, 2);
  EXPECT_EQ(plan.batch.page_tables, (Ints{0, 1, 2, 0}));
  EXPECT_EQ(plan.batch.output_rows, (Ints{4}));
  EXPECT_TRUE(plan.batch.segments.empty());
  EXPECT_EQ(plan.outputs, (Ids{0}));
  EXPECT_EQ(plan.rows.reset_slots, (Ints{0, 1}));
  EXPECT_EQ(plan.rows.seen_tokens, (Ints{10, 11, 12, 13, 14, 20, 21, 22}));
  EXPECT_EQ(plan.rows.seen_slots, (Ints{0, 0, 0, 0, 0, 1, 1, 1}));
  EXPECT_EQ(plan.rows.slots, (Ints{0}));
  EXPECT_EQ(plan.rows.position, (std::vector<uint32_t>{5}));
  EXPECT_EQ(plan.rows.ban, (Ints{-1}));

  // A decoding row, then the rest of the second prompt.
  plan = advance(scheduler, 16);
  EXPECT_EQ(plan.batch.tokens, (Ints{15, 23, 24, 25}));
  EXPECT_EQ(plan.batch.positions, (Ints{5, 3, 4, 5}));
  EXPECT_EQ(plan.batch.slots, (Ints{5, 11, 12, 13}));
  EXPECT_EQ(plan.batch.query_offsets, (Ints{0, 1, 4}));
  EXPECT_EQ(plan.batch.context_lengths, (Ints{6, 6}));
  EXPECT_EQ(plan.batch.page_tables, (Ints{0, 1, 2, 3}));
  EXPECT_EQ(plan.batch.output_rows, (Ints{0, 3}));
  EXPECT_EQ(plan.outputs, (Ids{0, 1}));
  EXPECT_TRUE(plan.rows.reset_slots.empty());
  EXPECT_EQ(plan.rows.seen_tokens, (Ints{23, 24, 25}));  // who drew 15 has marked it
  EXPECT_EQ(plan.rows.position, (std::vector<uint32_t>{6, 6}));
  EXPECT_EQ(scheduler.sequence(0).tokens, (Ints{10, 11, 12, 13, 14, 15, 16}));

  const Scheduler::Counts& counts = scheduler.counts();
  EXPECT_EQ(counts.steps, 2);
  EXPECT_EQ(counts.rows, 12);
  EXPECT_EQ(counts.prompt_computed, 11);
  EXPECT_EQ(counts.recomputed, 0);
  EXPECT_EQ(scheduler.pages_used(), 4);
}

TEST(Scheduler, SamplingParametersReachTheirRows) {
  Scheduler scheduler({.max_batch_rows = 8, .max_sequences = 4, .max_positions = 100}, 10, 4);
  Request first = request_of({1});
  first.stream = 0x1234567890ABCDEFULL;
  first.sampling = {
      .temperature = 0.5F, .top_p = 0.9F, .top_k = 7, .repetition_penalty = 1.0F, .min_tokens = 1};
  first.end_tokens = {3, 4};
  Request second = request_of({2});
  second.sampling.min_tokens = 2;
  second.end_tokens = {3};
  Request third = request_of({2, 5});
  third.sampling.min_tokens = 2;
  third.sampling.ignore_end = true;
  third.end_tokens = {3};
  scheduler.add(first);
  scheduler.add(second);
  scheduler.add(third);
  StepPlan plan = advance(scheduler, 9);
  EXPECT_EQ(plan.rows.slots, (Ints{-1, 1, 2}));
  EXPECT_EQ(plan.rows.seen_tokens, (Ints{2, 2, 5}));
  EXPECT_EQ(plan.rows.temperature, (std::vector<float>{0.5F, 0.7F, 0.7F}));
  EXPECT_EQ(plan.rows.top_p, (std::vector<float>{0.9F, 0.8F, 0.8F}));
  EXPECT_EQ(plan.rows.penalty, (std::vector<float>{1.0F, 1.1F, 1.1F}));
  EXPECT_EQ(plan.rows.top_k, (Ints{7, 20, 20}));
  EXPECT_EQ(plan.rows.stream_low, (std::vector<uint32_t>{0x90ABCDEF, 0, 0}));
  EXPECT_EQ(plan.rows.stream_high, (std::vector<uint32_t>{0x12345678, 0, 0}));
  EXPECT_EQ(plan.rows.position, (std::vector<uint32_t>{1, 1, 2}));
  EXPECT_EQ(plan.rows.ban, (Ints{0, 1, -1}));
  EXPECT_EQ(plan.rows.ban_lists, (std::vector<Ints>{{3, 4}, {3}}));
  plan = advance(scheduler, 9);
  EXPECT_EQ(plan.rows.ban, (Ints{-1, 0, -1}));
  EXPECT_EQ(plan.rows.ban_lists, (std::vector<Ints>{{3}}));
}

TEST(Scheduler, AdaptersAreGroupedTheBareBaseFirst) {
  Scheduler scheduler({.max_batch_rows = 16, .max_sequences = 8, .max_positions = 100}, 10, 4);
  scheduler.add(request_of({1}, 1));
  scheduler.add(request_of({2}, 0));
  scheduler.add(request_of({3, 4}, -1));
  scheduler.add(request_of({5, 6}, 1));
  const StepPlan plan = advance(scheduler, 9);
  EXPECT_EQ(plan.batch.tokens, (Ints{3, 4, 2, 1, 5, 6}));
  EXPECT_EQ(plan.batch.segments, (std::vector<AdapterSegment>{{0, 2, 3}, {1, 3, 6}}));
  EXPECT_EQ(plan.outputs, (Ids{2, 1, 0, 3}));
}

TEST(Scheduler, PagesAreSharedWithinTheBatchThatFillsThem) {
  Scheduler scheduler({.max_batch_rows = 32, .max_sequences = 8, .max_positions = 100}, 10, 4);
  Ints prompt = tokens_from(1, 10);
  scheduler.add(request_of(prompt));
  scheduler.add(request_of(prompt));
  scheduler.add(request_of(prompt, 0));  // another adapter shares nothing
  const StepPlan plan = advance(scheduler, 50);
  EXPECT_EQ(plan.batch.tokens, (Ints{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 9, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
  EXPECT_EQ(plan.batch.context_lengths, (Ints{10, 10, 10}));
  EXPECT_EQ(plan.batch.page_tables, (Ints{0, 1, 2, 0, 1, 3, 4, 5, 6}));
  EXPECT_EQ(plan.batch.slots[10], 12);
  EXPECT_EQ(scheduler.counts().prompt_shared, 8);
  EXPECT_EQ(scheduler.sequence(1).shared, 8);
  EXPECT_EQ(scheduler.sequence(2).shared, 0);
  // The bitmap of the second sequence holds the shared tokens too.
  EXPECT_EQ(std::ranges::count(plan.rows.seen_slots, 1), 10);
}

TEST(Scheduler, APromptThatIsWhollyCachedComputesItsLastTokenAndStoresNothing) {
  Scheduler scheduler({.max_batch_rows = 32, .max_sequences = 8, .max_positions = 100}, 10, 4);
  scheduler.add(request_of(tokens_from(1, 8)));
  advance(scheduler, 50);
  scheduler.remove(0);
  EXPECT_EQ(scheduler.pages_used(), 0);
  scheduler.add(request_of(tokens_from(1, 8)));
  const StepPlan plan = advance(scheduler, 50);
  EXPECT_EQ(plan.batch.tokens, (Ints{8}));
  EXPECT_EQ(plan.batch.positions, (Ints{7}));
  EXPECT_EQ(plan.batch.slots, (Ints{-1}));
  EXPECT_EQ(plan.batch.context_lengths, (Ints{8}));
  EXPECT_EQ(plan.batch.page_tables, (Ints{0, 1}));
  EXPECT_EQ(plan.batch.output_rows, (Ints{0}));
  EXPECT_EQ(scheduler.counts().prompt_shared, 7);
}

TEST(Scheduler, ALaterChunkTakesPagesFilledMeanwhile) {
  Scheduler scheduler({.max_batch_rows = 6, .max_sequences = 8, .max_positions = 100}, 10, 2);
  scheduler.add(request_of(tokens_from(1, 11)));
  StepPlan plan = advance(scheduler, 50);
  EXPECT_EQ(plan.batch.tokens, tokens_from(1, 6));
  scheduler.add(request_of(tokens_from(1, 11)));
  plan = advance(scheduler, 50);  // the first ends its prompt; one row is left for the second
  EXPECT_EQ(plan.batch.tokens, (Ints{7, 8, 9, 10, 11, 11}));
  EXPECT_EQ(plan.batch.page_tables, (Ints{0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 6}));
  EXPECT_EQ(scheduler.counts().prompt_shared, 10);
}

// Two sequences that compute the same page token by token end up with one page.
TEST(Scheduler, EqualPagesBecomeOneWhenTheyAreFull) {
  Scheduler scheduler({.max_batch_rows = 32, .max_sequences = 8, .max_positions = 100}, 10, 4);
  scheduler.add(request_of({1, 2}));
  scheduler.add(request_of({1, 2}));
  advance(scheduler, 3);
  EXPECT_EQ(scheduler.pages_used(), 2);
  advance(scheduler, 4);
  const StepPlan plan = advance(scheduler, 5);
  EXPECT_EQ(plan.batch.tokens, (Ints{4, 4}));
  EXPECT_EQ(plan.batch.slots, (Ints{3, -1}));
  EXPECT_EQ(plan.batch.page_tables, (Ints{0, 0}));
  EXPECT_EQ(scheduler.pages_used(), 1);
}

TEST(Scheduler, TheYoungestGivesWayAndComputesAgain) {
  Scheduler scheduler({.max_batch_rows = 32, .max_sequences = 8, .max_positions = 100}, 4, 2);
  scheduler.add(request_of({1, 2, 3}));
  scheduler.add(request_of({5, 6, 7}));
  advance(scheduler, 10);
  advance(scheduler, 11);
  EXPECT_EQ(scheduler.pages_used(), 4);
  // Both need a fifth token's page: the second gives up its own.
  StepPlan plan = advance(scheduler, 12);
  EXPECT_EQ(plan.outputs, (Ids{0}));
  EXPECT_EQ(plan.batch.positions, (Ints{4}));
  EXPECT_EQ(scheduler.running(), 1);
  EXPECT_EQ(scheduler.waiting(), 1);
  EXPECT_EQ(scheduler.counts().preemptions, 1);
  EXPECT_EQ(scheduler.sequence(1).tokens, (Ints{5, 6, 7, 10, 11}));
  plan = advance(scheduler, 13);  // needs three pages of which one is there: waits
  EXPECT_EQ(plan.outputs, (Ids{0}));
  scheduler.remove(0);
  plan = advance(scheduler, 13);
  // One page of its own past survived in the tree.
  EXPECT_EQ(plan.outputs, (Ids{1}));
  EXPECT_EQ(plan.batch.tokens, (Ints{7, 10, 11}));
  EXPECT_EQ(plan.rows.reset_slots.size(), 1);
  EXPECT_EQ(plan.rows.seen_tokens, (Ints{5, 6, 7, 10, 11}));
  EXPECT_EQ(scheduler.counts().recomputed, 2);
  EXPECT_EQ(scheduler.sequence(1).tokens, (Ints{5, 6, 7, 10, 11, 13}));
}

TEST(Scheduler, WhatDoesNotFitAloneOverflows) {
  Scheduler scheduler({.max_batch_rows = 32, .max_sequences = 8, .max_positions = 100}, 2, 2);
  scheduler.add(request_of(tokens_from(1, 5)));  // three pages: never
  scheduler.add(request_of(tokens_from(1, 4)));
  StepPlan plan = advance(scheduler, 9);
  EXPECT_EQ(plan.overflowed, (Ids{0}));
  EXPECT_EQ(plan.outputs, (Ids{1}));
  scheduler.remove(0);
  plan = advance(scheduler, 9);  // a fifth token has no place
  EXPECT_EQ(plan.overflowed, (Ids{1}));
  EXPECT_EQ(plan.batch.rows(), 0);
  EXPECT_EQ(scheduler.sequence(1).tokens, (Ints{1, 2, 3, 4, 9}));
  scheduler.remove(1);
  EXPECT_EQ(scheduler.pages_used(), 0);
  scheduler.check();
}

TEST(Scheduler, PromptsOfAllPositionsOverflow) {
  Scheduler scheduler({.max_batch_rows = 32, .max_sequences = 8, .max_positions = 4}, 8, 2);
  scheduler.add(request_of(tokens_from(1, 4)));
  scheduler.add(request_of(tokens_from(1, 3)));
  const StepPlan plan = advance(scheduler, 9);
  EXPECT_EQ(plan.overflowed, (Ids{0}));
  EXPECT_EQ(plan.outputs, (Ids{1}));
}

TEST(Scheduler, PromptsDoNotPushEachOutWhileTheyAreRead) {
  Scheduler scheduler({.max_batch_rows = 4, .max_sequences = 8, .max_positions = 100}, 6, 2);
  scheduler.add(request_of(tokens_from(1, 8)));   // four pages, read over two steps
  scheduler.add(request_of(tokens_from(50, 6)));  // three: not beside the first
  advance(scheduler, 9);
  EXPECT_EQ(scheduler.running(), 1);
  advance(scheduler, 9);
  EXPECT_EQ(scheduler.running(), 1);
  scheduler.remove(0);
  advance(scheduler, 9);
  EXPECT_EQ(scheduler.running(), 1);
  EXPECT_EQ(scheduler.counts().preemptions, 0);
}

TEST(Scheduler, SequencesAtATimeAreLimited) {
  Scheduler scheduler({.max_batch_rows = 32, .max_sequences = 2, .max_positions = 100}, 20, 2);
  for (int32_t i = 0; i < 5; ++i) scheduler.add(request_of({i}));
  EXPECT_EQ(advance(scheduler, 9).outputs, (Ids{0, 1}));
  scheduler.remove(0);
  EXPECT_EQ(advance(scheduler, 9).outputs, (Ids{1, 2}));
  EXPECT_EQ(scheduler.waiting(), 2);
}

TEST(Scheduler, SharedPagesAreForgottenOnRequest) {
  Scheduler scheduler({.max_batch_rows = 32, .max_sequences = 2, .max_positions = 100}, 20, 2);
  scheduler.add(request_of({1, 2, 3}));
  advance(scheduler, 9);
  EXPECT_THROW(scheduler.clear_tree(), BugError);
  scheduler.remove(0);
  scheduler.clear_tree();
  scheduler.add(request_of({1, 2, 3}));
  EXPECT_EQ(advance(scheduler, 9).batch.tokens, (Ints{1, 2, 3}));
}

// A step planned while the tokens of the one before are being drawn names them by their rows.
TEST(Scheduler, AStepIsPlannedBeforeTheTokensOfTheOneBeforeAreKnown) {
  Scheduler scheduler({.max_batch_rows = 8, .max_sequences = 4, .max_positions = 100}, 10, 2);
  Request short_request = request_of({30});
  short_request.sampling.max_tokens = 1;
  scheduler.add(request_of({10, 11}));
  scheduler.add(request_of({20, 21, 22}));
  scheduler.add(short_request);
  StepPlan first, second, third;
  scheduler.plan(first);
  EXPECT_EQ(first.batch.tokens, (Ints{10, 11, 20, 21, 22, 30}));
  scheduler.plan(second);
  scheduler.check();
  EXPECT_EQ(second.batch.tokens, (Ints{-1, -2}));  // the third sequence ends with what it draws
  EXPECT_EQ(second.batch.positions, (Ints{2, 3}));
  EXPECT_EQ(second.outputs, (Ids{0, 1}));
  scheduler.take(first, Ints{12, 23, 31});
  scheduler.check();
  EXPECT_EQ(scheduler.sequence(0).tokens, (Ints{10, 11, 12, -1}));
  EXPECT_EQ(scheduler.sequence(0).pending, 1);
  EXPECT_EQ(scheduler.sequence(2).tokens, (Ints{30, 31}));
  scheduler.remove(2);
  scheduler.remove(0);  // its row is under way, and nobody waits for it any more
  scheduler.plan(third);
  scheduler.check();
  EXPECT_EQ(third.batch.tokens, (Ints{-2}));
  EXPECT_EQ(third.batch.positions, (Ints{4}));
  scheduler.take(second, Ints{13, 24});
  scheduler.take(third, Ints{25});
  scheduler.check();
  EXPECT_EQ(scheduler.sequence(1).tokens, (Ints{20, 21, 22, 23, 24, 25}));
}

TEST(Scheduler, NothingToDo) {
  Scheduler scheduler({.max_batch_rows = 32, .max_sequences = 2, .max_positions = 100}, 20, 2);
  const StepPlan plan = advance(scheduler, 9);
  EXPECT_EQ(plan.batch.rows(), 0);
  EXPECT_EQ(scheduler.counts().steps, 0);
  EXPECT_THROW(scheduler.add(request_of({})), BugError);
  EXPECT_THROW(Scheduler({.max_batch_rows = 1, .max_sequences = 1}, 20, 2), BugError);
}

}  // namespace
}  // namespace sl
