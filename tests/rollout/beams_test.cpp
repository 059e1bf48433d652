// Beam search through the engine: against its definition on the fake model, whatever the plan of steps; where
// pages, slots and texts go.
#include <gmock/gmock.h>

#include "core/error.hpp"
#include "support.hpp"
#include "tests/rollout/plain_beam_search.hpp"

namespace sl {
namespace {

using namespace test;
using Ints = std::vector<int32_t>;

PlainBeam expected_of(const FakeModel& model, const Request& request) {
  return plain_beam_search(request, [&](const Ints& tokens, int64_t generated) {
    DrawContext context;
    context.tokens = tokens;
    context.adapter = request.adapter;
    if (generated < request.sampling.min_tokens) context.banned = request.end_tokens;
    const std::vector<float> scores = model.score(context);
    return std::vector<double>(scores.begin(), scores.end());
  });
}

std::vector<Request> random_searches(int count, int32_t vocabulary) {
  Random random(RandomAddress{.seed = 5});
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request;
    for (int64_t more = 1 + random.below(20); more > 0; --more)
      request.prompt.push_back(static_cast<int32_t>(random.below(3)));
    request.adapter = static_cast<int32_t>(random.below(3)) - 1;
    request.stream = stream_of({.sample = i});
    request.sampling.beams = i % 5 == 0 ? 1 : 1 + random.below(6);
    request.sampling.length_penalty = std::vector{0.0, 0.8, 1.0, 1.2, -0.5, 3.0}.at(size_t(random.below(6)));
    request.sampling.repetition_penalty = random.below(2) == 0 ? 1.0F : 1.1F;
    request.sampling.max_tokens = 1 + random.below(30);
    request.sampling.min_tokens = random.below(3) == 0 ? random.below(request.sampling.max_tokens + 1) : 0;
    request.sampling.stop = {};
    for (int64_t ends = random.below(4); ends > 0; --ends)
      request.end_tokens.push_back(static_cast<int32_t>(vocabulary - ends));
    requests.push_back(request);
  }
  return requests;
}

struct Room {
  int64_t rows, sequences, pages, page, lag;
};

class BeamsOverPlans : public testing::TestWithParam<Room> {};

TEST_P(BeamsOverPlans, AreThoseOfTheDefinition) {
  const Room room = GetParam();
  const int32_t vocabulary = 30;
  const Tokenizer tokenizer = byte_tokenizer();
  FakeModel model(room.pages, room.page, vocabulary, room.sequences);
  model.lag_steps = room.lag;
  const EngineOptions options{
      .max_batch_rows = room.rows, .max_sequences = room.sequences, .max_positions = 60};
  Engine engine(model, tokenizer, options);
  std::vector<Request> requests = random_searches(60, vocabulary);
  const auto completions = complete_all(engine, requests);
  std::set<FinishReason> reasons;
  int64_t ended_early = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (!requests[i].has_beams()) continue;
    const PlainBeam expected = expected_of(model, requests[i]);
    Ints tokens = requests[i].prompt;
    tokens.insert(tokens.end(), completions[i].tokens.begin(), completions[i].tokens.end());
    ASSERT_EQ(tokens, expected.tokens) << i;
    EXPECT_NEAR(completions[i].score, expected.score, 1e-9 * std::abs(expected.score)) << i;
    reasons.insert(completions[i].finish);
    ended_early += std::ssize(completions[i].tokens) < requests[i].sampling.max_tokens;
  }
  EXPECT_THAT(reasons, testing::UnorderedElementsAre(FinishReason::stop, FinishReason::length));
  EXPECT_GT(ended_early, 10);
  EXPECT_EQ(engine.statistics().pages_used, 0);
  if (room.pages < 60) {
    EXPECT_GT(engine.statistics().preemptions, 20);
  }
}

INSTANTIATE_TEST_SUITE_P(Rooms, BeamsOverPlans,
                         testing::Values(Room{64, 24, 400, 4, 0}, Room{64, 24, 400, 4, 1},
                                         Room{3, 6, 400, 4, 0}, Room{3, 6, 400, 4, 1}, Room{16, 8, 14, 4, 0},
                                         Room{16, 8, 14, 4, 1}, Room{7, 12, 52, 1, 0}, Room{7, 12, 52, 1, 1},
                                         Room{64, 24, 20, 8, 0}, Room{64, 24, 20, 8, 1}));

// Requests that wait for slots do not stand in the way of those that run.
TEST(Beams, OfOneRequestRunTogether) {
  const Tokenizer tokenizer = byte_tokenizer();
  FakeModel model(400, 4, 30, 8);
  Engine engine(model, tokenizer, {.max_batch_rows = 64, .max_sequences = 8, .max_positions = 60});
  std::vector<Request> requests(10);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt = {static_cast<int32_t>(i), 2};
    requests[i].sampling.beams = 1 + static_cast<int64_t>(i % 4);
    requests[i].sampling.max_tokens = 20;
  }
  complete_all(engine, requests);
  EXPECT_EQ(engine.statistics().preemptions, 0);
  EXPECT_LE(engine.statistics().steps, 120) << "one request after the other takes 200";
}

// Scores by hand: by what follows the first token of the prompt; $ is the end token. What is not named scores
// -20.
using Table = std::map<std::string, std::map<char, float>>;

class BeamText : public testing::Test {
 protected:
  const Tokenizer tokenizer_ = byte_tokenizer();
  FakeModel model_{64, 4, 257, 8};
  Engine engine_{model_, tokenizer_, {.max_batch_rows = 16, .max_sequences = 8, .max_positions = 30}};
  Request request_ = [] {
    Request request;
    request.prompt = {'p'};
    request.end_tokens = {256};
    request.sampling.beams = 2;
    request.sampling.max_tokens = 5;
    request.sampling.repetition_penalty = 1;
    return request;
  }();

  Completion search(const Table& table) {
    model_.score = [&table](const DrawContext& context) {
      std::vector<float> scores(257, -20.0F);
      const auto row = table.find(std::string(context.tokens.begin() + 1, context.tokens.end()));
      if (row != table.end()) {
        for (const auto& [token, score] : row->second) scores[token == '$' ? 256 : size_t(token)] = score;
      }
      for (const int32_t token : context.banned) scores[size_t(token)] = -INFINITY;
      return scores;
    };
    return complete_all(engine_, {request_}).front();
  }
};

TEST_F(BeamText, FindsWhatGreedyDecodingMisses) {
  const Table table = {{"", {{'a', -1}, {'b', -1.5}}},
                       {"a", {{'x', -3}, {'y', -3.5}}},
                       {"b", {{'x', -0.25}, {'y', -4}}},
                       {"bx", {{'$', -0.25}}},
                       {"ax", {{'$', -0.25}}}};
  const Completion completion = search(table);
  EXPECT_EQ(completion.text, "bx");
  EXPECT_EQ(completion.tokens, (Ints{'b', 'x', 256}));
  EXPECT_EQ(completion.finish, FinishReason::stop);
  EXPECT_DOUBLE_EQ(completion.score, -2.0 / 3.0);
}

// "a" ends with -1 after 2 tokens, "bcd" with -1.5 after 4.
TEST_F(BeamText, TheLengthPenaltyDecidesBetweenShortAndLong) {
  const Table table = {{"", {{'a', -0.5}, {'b', -0.5}}},
                       {"a", {{'$', -0.5}}},
                       {"b", {{'c', -0.5}}},
                       {"bc", {{'d', -0.25}}},
                       {"bcd", {{'$', -0.25}}}};
  request_.sampling.length_penalty = 0;
  EXPECT_EQ(search(table).text, "a");
  request_.sampling.length_penalty = 1;
  EXPECT_EQ(search(table).text, "bcd");
  request_.sampling.length_penalty = 0;
  request_.sampling.min_tokens = 2;
  EXPECT_EQ(search(table).text, "bcd") << "the end of \"a\" is banned";
}

TEST_F(BeamText, AStopStringEndsABeamAndItsTextGoesOnInTheOthers) {
  request_.sampling.stop = {"--"};
  const Table table = {{"", {{'-', -0.5}, {'b', -1}}},
                       {"-", {{'-', -0.5}, {'c', -0.75}}},
                       {"-c", {{'-', -0.125}}},
                       {"-c-", {{'-', -0.125}}}};
  const Completion completion = search(table);
  EXPECT_EQ(completion.text, "-c");
  EXPECT_EQ(completion.tokens, bytes_of("-c--"));
  EXPECT_EQ(completion.finish, FinishReason::stop);
}

TEST_F(BeamText, CutByTheLimitsItGivesTheBestThereIs) {
  const Table table = {{"", {{'a', -1}}}, {"a", {{'a', -1}}}, {"aa", {{'a', -1}}}};
  request_.sampling.max_tokens = 3;
  Completion completion = search(table);
  EXPECT_EQ(completion.text, "aaa");
  EXPECT_EQ(completion.finish, FinishReason::length);
  request_.sampling.max_tokens = 100;
  request_.prompt.assign(28, 'p');
  EXPECT_EQ(search({}).finish, FinishReason::context) << "two positions are left";
}

TEST_F(BeamText, WithoutPagesForTheLongestBeamItEndsAsFarAsItGot) {
  FakeModel small(3, 4, 257, 8);
  Engine engine(small, tokenizer_, {.max_batch_rows = 16, .max_sequences = 8, .max_positions = 30});
  request_.sampling.max_tokens = 20;
  request_.end_tokens = {};
  const Completion completion = complete_all(engine, {request_}).front();
  EXPECT_EQ(completion.finish, FinishReason::context);
  EXPECT_EQ(completion.tokens.size(), 12) << "the last token needs no page";
  request_.prompt.assign(20, 'p');
  EXPECT_EQ(complete_all(engine, {request_}).front().finish, FinishReason::context);
}

TEST_F(BeamText, WhatThereIsNoRoomForIsTheUsersMistake) {
  request_.sampling.beams = 9;
  EXPECT_THROW(complete_all(engine_, {request_}), InputError);
  request_.sampling.beams = 8;
  request_.end_tokens.assign(16, 256);
  EXPECT_THROW(complete_all(engine_, {request_}), InputError) << "8 * 17 best tokens";
  request_.sampling.ignore_end = true;
  EXPECT_NO_THROW(complete_all(engine_, {request_}));
  request_.sampling.beams = 0;
  EXPECT_THROW(complete_all(engine_, {request_}), InputError);
  request_.sampling.beams = 2;
  request_.sampling.length_penalty = NAN;
  EXPECT_THROW(complete_all(engine_, {request_}), InputError);
}

// A prompt of 6 tokens over pages of 4: the full page is shared, the one that is begun copied.
TEST(Beams, ShareFullPagesAndCopyTheOneThatIsBegun) {
  Scheduler scheduler({.max_batch_rows = 16, .max_sequences = 4, .max_positions = 100}, 10, 4);
  Request request;
  request.prompt = {1, 2, 3, 4, 5, 6};
  request.sampling.beams = 3;
  const int64_t id = scheduler.add(request);
  const auto step = [&](const std::vector<BeamStep>& beams) {
    StepPlan plan;
    scheduler.plan(plan);
    scheduler.check();
    scheduler.take(plan, Ints(plan.outputs.size(), -1));
    scheduler.check();
    scheduler.fork(id, beams);
    scheduler.check();
    return plan;
  };
  StepPlan plan = step({{0, 7}, {0, 8}, {0, 9}});
  EXPECT_EQ(plan.rows.best, (Ints{6}));
  EXPECT_EQ(plan.batch.page_tables, (Ints{0, 1}));
  EXPECT_TRUE(plan.batch.copied_pages.to.empty());

  plan = step({{2, 10}, {2, 11}, {0, 12}});
  EXPECT_EQ(plan.batch.tokens, (Ints{7, 8, 9}));
  EXPECT_EQ(plan.batch.page_tables, (Ints{0, 2, 0, 3, 0, 1}));
  EXPECT_EQ(plan.batch.slots, (Ints{2 * 4 + 2, 3 * 4 + 2, 1 * 4 + 2}));
  EXPECT_EQ(plan.batch.copied_pages, (RowCopies{{1, 1}, {2, 3}}));
  EXPECT_EQ(plan.rows.copied_slots, (RowCopies{{0, 0}, {1, 2}}));
  EXPECT_EQ(plan.rows.seen_tokens, (Ints{7, 8, 9}));
  EXPECT_EQ(plan.rows.seen_slots, (Ints{1, 2, 0}));
  EXPECT_EQ(plan.rows.slots, (Ints{1, 2, 0}));
  EXPECT_EQ(plan.outputs, (std::vector<int64_t>{0, 1, 2}));

  // The page of the beam that nobody went on from is there again; full pages need no copy.
  plan = step({{0, 13}, {0, 14}, {0, 15}});
  EXPECT_EQ(plan.batch.tokens, (Ints{10, 11, 12}));
  EXPECT_EQ(plan.batch.page_tables, (Ints{0, 3, 0, 1, 0, 2}));
  EXPECT_EQ(plan.batch.copied_pages, (RowCopies{{1}, {3}}));
  EXPECT_EQ(scheduler.pages_used(), 2);
  plan = step({{0, 1}, {1, 1}, {2, 1}});
  EXPECT_TRUE(plan.batch.copied_pages.to.empty());
  EXPECT_EQ(scheduler.sequence(1).tokens, (Ints{1, 2, 3, 4, 5, 6, 9, 10, 14, 1}));
  scheduler.remove(id);
  scheduler.check();
  EXPECT_EQ(scheduler.pages_used(), 0);
}

TEST(Beams, GoOnOnlyWhenAllAreKnown) {
  Scheduler scheduler({.max_batch_rows = 2, .max_sequences = 4, .max_positions = 100}, 10, 4);
  Request request;
  request.prompt = {1};
  request.sampling.beams = 3;
  scheduler.add(request);
  StepPlan plan;
  scheduler.plan(plan);
  EXPECT_THROW(scheduler.fork(0, std::vector<BeamStep>{{0, 5}}), BugError);
  scheduler.take(plan, Ints{-1});
  scheduler.fork(0, std::vector<BeamStep>{{0, 5}, {0, 6}, {0, 7}});
  scheduler.plan(plan);
  EXPECT_EQ(plan.batch.tokens, (Ints{5, 6}));
  scheduler.take(plan, Ints{-1, -1});
  scheduler.plan(plan);
  EXPECT_EQ(plan.batch.tokens, (Ints{7}));
  scheduler.plan(plan);
  EXPECT_EQ(plan.batch.rows(), 0);
  scheduler.check();
}

}  // namespace
}  // namespace sl
