#include "rollout/engine.hpp"

#include "core/error.hpp"
#include "support.hpp"
#include "text/rules.hpp"

namespace sl {
namespace {

using namespace test;

// Requests of many kinds over a small vocabulary, some with common beginnings.
std::vector<Request> varied_requests(int count, int32_t vocabulary, uint64_t seed) {
  Random random(RandomAddress{.seed = seed});
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request;
    if (i > 0 && random.below(2) == 0) {
      const Request& other = requests[static_cast<size_t>(random.below(i))];
      request.prompt = other.prompt;
      request.prompt.resize(1 + static_cast<size_t>(random.below(int64_t(request.prompt.size()))));
      request.adapter = other.adapter;
    } else {
      request.adapter = static_cast<int32_t>(random.below(3)) - 1;
    }
    for (int64_t more = 1 + random.below(20); more > 0; --more)
      request.prompt.push_back(static_cast<int32_t>(random.below(vocabulary)));
    request.stream = stream_of({.seed = seed, .sample = i % 7 == 6 ? i - 1 : i});
    request.sampling.max_tokens = 1 + random.below(40);
    request.sampling.repetition_penalty = random.below(3) == 0 ? 1.0F : 1.1F;
    request.sampling.stop = {};
    if (random.below(2) == 0) {
      request.end_tokens = {static_cast<int32_t>(random.below(vocabulary)), 3};
      request.sampling.min_tokens = random.below(request.sampling.max_tokens + 1);
    }
    requests.push_back(request);
  }
  return requests;
}

// A flow's model that says a given text, byte by byte or as given tokens, then other bytes for ever.
FakeModel::Draw says(std::vector<int32_t> tokens, size_t prompt) {
  return [tokens = std::move(tokens), prompt](const DrawContext& context) {
    const size_t at = context.tokens.size() - prompt;
    return at < tokens.size() ? tokens[at] : static_cast<int32_t>('z');
  };
}

class EngineText : public testing::Test {
 protected:
  Tokenizer tokenizer_ = byte_tokenizer({"x---y", "\n\n", "--", "-\n"});
  const int32_t end_ = 260;
  FakeModel model_{64, 4, 261, 8};
  Engine engine_{model_, tokenizer_, {.max_batch_rows = 16, .max_sequences = 8, .max_positions = 200}};

  Request request_ = [] {
    Request request;
    request.prompt = {'p', 'q'};
    request.end_tokens = {260};
    return request;
  }();

  Completion say(const std::vector<int32_t>& tokens) {
    model_.draw = says(tokens, request_.prompt.size());
    return complete_all(engine_, {request_}).front();
  }
};

TEST_F(EngineText, EndTokenEndsAndLeavesNoText) {
  auto tokens = bytes_of("Hello.");
  tokens.push_back(end_);
  const Completion completion = say(tokens);
  EXPECT_EQ(completion.text, "Hello.");
  EXPECT_EQ(completion.tokens, tokens);
  EXPECT_EQ(completion.finish, FinishReason::stop);
  EXPECT_EQ(completion.prompt_tokens, 2);
  EXPECT_EQ(engine_.statistics().generated_tokens, 7);
}

TEST_F(EngineText, StopStringsSplitOverTokens) {
  auto tokens = bytes_of("One.");
  tokens.insert(tokens.end(), {257, '-', 258});  // "\n\n", "-", "--"
  const Completion completion = say(tokens);
  EXPECT_EQ(completion.text, "One.");
  EXPECT_EQ(completion.tokens, tokens);
  EXPECT_EQ(completion.finish, FinishReason::stop);
}

TEST_F(EngineText, StopStringInTheMiddleOfAToken) {
  EXPECT_EQ(say({'a', 256, 'b'}).text, "ax");
  EXPECT_EQ(complete_all(engine_, {request_}).front().tokens, (std::vector<int32_t>{'a', 256}));
}

TEST_F(EngineText, PartialStopsAreTextAfterAll) {
  auto tokens = bytes_of("a--b\n\n-c--");
  tokens.push_back(end_);
  EXPECT_EQ(say(tokens).text, "a--b\n\n-c--");
}

TEST_F(EngineText, MaxTokens) {
  request_.sampling.max_tokens = 3;
  const Completion completion = say(bytes_of("Hello"));
  EXPECT_EQ(completion.text, "Hel");
  EXPECT_EQ(completion.finish, FinishReason::length);
  EXPECT_EQ(completion.tokens.size(), 3);
}

TEST_F(EngineText, MinTokensHoldOffEndTokensAndStops) {
  request_.sampling.min_tokens = 5;
  std::vector<std::vector<int32_t>> banned;
  const auto script = says({'-', 258, 'a', 258, '-', end_}, 2);  // "---" with the second and the fifth token
  model_.draw = [&](const DrawContext& context) {
    banned.push_back(context.banned);
    return script(context);
  };
  const Completion completion = complete_all(engine_, {request_}).front();
  EXPECT_EQ(completion.text, "---a---");
  EXPECT_EQ(completion.finish, FinishReason::stop);
  const std::vector<int32_t> end = {end_};
  EXPECT_EQ(banned, (std::vector<std::vector<int32_t>>{end, end, end, end, end, {}}));
}

TEST_F(EngineText, IgnoreEnd) {
  request_.sampling.ignore_end = true;
  request_.sampling.max_tokens = 4;
  const Completion completion = say({'a', end_, 'b', 'c'});
  EXPECT_EQ(completion.text, "abc");
  EXPECT_EQ(completion.finish, FinishReason::length);
}

TEST_F(EngineText, CharactersOfSeveralTokens) {
  auto tokens = bytes_of("é🙂");
  tokens.push_back(end_);
  EXPECT_EQ(say(tokens).text, "é🙂");
  request_.sampling.max_tokens = 4;  // cuts the second character
  EXPECT_EQ(say(tokens).text, "é\uFFFD");
}

TEST_F(EngineText, PositionsOfTheModelEndIt) {
  FakeModel model(64, 4, 261, 8);
  model.draw = says({}, 0);
  Engine engine(model, tokenizer_, {.max_batch_rows = 16, .max_sequences = 8, .max_positions = 6});
  const auto completions = complete_all(engine, {request_});
  EXPECT_EQ(completions[0].finish, FinishReason::context);
  EXPECT_EQ(completions[0].text, "zzzz");
  request_.prompt.resize(6, 'p');
  EXPECT_EQ(complete_all(engine, {request_}).front().finish, FinishReason::context);
}

TEST_F(EngineText, PoolTooSmallForOneEndsIt) {
  FakeModel model(2, 4, 261, 8);
  model.draw = says({}, 0);
  Engine engine(model, tokenizer_, {.max_batch_rows = 16, .max_sequences = 8, .max_positions = 100});
  const auto completions = complete_all(engine, {request_, request_});
  for (const Completion& completion : completions) {
    EXPECT_EQ(completion.finish, FinishReason::context);
    EXPECT_EQ(completion.text, "zzzzzzz");  // two prompt tokens, six more in the pages, and the one they give
  }
}

TEST_F(EngineText, HopelessTextEndsAtOnce) {
  request_.watch = Language::en;
  const std::string run = "a b c d e f g h i j ";
  const Completion completion = say(bytes_of("x " + run + "and " + run + "further words follow here"));
  EXPECT_EQ(completion.finish, FinishReason::hopeless);
  EXPECT_EQ(completion.text, "x " + run + "and " + run);
  EXPECT_EQ(accept(Language::en, completion.text), Rejection::ending);
  EXPECT_EQ(accept(Language::en, completion.text + "."), Rejection::repetition);
  EXPECT_EQ(engine_.statistics().hopeless_stops, 1);
  EXPECT_EQ(engine_.statistics().hopeless_tokens, int64_t(completion.tokens.size()));
  request_.watch.reset();
  request_.sampling.max_tokens = 60;
  EXPECT_EQ(complete_all(engine_, {request_}).front().finish, FinishReason::length);
}

TEST_F(EngineText, TheWatchKnowsWhatStandsBeforeTheCompletion) {
  request_.watch = Language::en;
  request_.sampling.max_tokens = 30;
  request_.watched_prefix = "one a b c d e f g h i j two a b c d e";
  const Completion completion = say(bytes_of(" f g h i j. k"));
  EXPECT_EQ(completion.finish, FinishReason::length);  // "j." is another word
  const Completion other = say(bytes_of(" f g h i j k"));
  EXPECT_EQ(other.finish, FinishReason::hopeless);
  EXPECT_EQ(other.text, " f g h i j ");
  // Hopeless before the first token: nothing is computed.
  request_.watched_prefix = "a b c d e f g h i j a b c d e f g h i j ";
  const int64_t steps = model_.steps;
  const Completion none = say(bytes_of("x"));
  EXPECT_EQ(none.finish, FinishReason::hopeless);
  EXPECT_TRUE(none.tokens.empty());
  EXPECT_EQ(model_.steps, steps);
}

TEST_F(EngineText, TheWatchDoesNotSeeWhatAStopTakesBack) {
  request_.watch = Language::en;
  request_.sampling.stop = {" j stop"};
  const Completion completion = say(bytes_of("a b c d e f g h i j a b c d e f g h i j stop"));
  EXPECT_EQ(completion.finish, FinishReason::stop);
  EXPECT_EQ(completion.text, "a b c d e f g h i j a b c d e f g h i");
}

TEST_F(EngineText, RefusesImpossibleRequests) {
  Request request = request_;
  request.prompt = {};
  EXPECT_THROW(engine_.complete(request), InputError);
  request.prompt = {'a', 261};
  EXPECT_THROW(engine_.complete(request), InputError);
  try {
    engine_.complete(request);
    ADD_FAILURE() << "nothing thrown";
  } catch (const InputError& error) {
    EXPECT_STREQ(
        error.what(),
        "prompt: token 261 is not in the model's vocabulary of 261; use the tokenizer of this model");
  }
  request = request_;
  request.end_tokens = {261};
  EXPECT_THROW(engine_.complete(request), InputError);
  request.prompt = {-1};
  EXPECT_THROW(engine_.complete(request), InputError);
  request = request_;
  request.sampling.top_p = 2;
  EXPECT_THROW(engine_.complete(request), InputError);
  request = request_;
  request.adapter = -2;
  EXPECT_THROW(engine_.complete(request), BugError);
  // In a flow the exception is the flow's.
  auto task = complete(engine_, request);
  task.start();
  EXPECT_TRUE(task.done());
  EXPECT_THROW(task.result(), BugError);
  EXPECT_TRUE(engine_.idle());
}

// The same requests, whatever the budgets: the fake's token depends on the whole context it reads back.
TEST(Engine, ContentDoesNotDependOnBudgetsOrMemory) {
  const Tokenizer tokenizer = byte_tokenizer();
  const auto requests = varied_requests(80, 50, 11);
  struct Setting {
    int64_t rows, sequences, pages, page;
  };
  std::vector<Completion> expected;
  int64_t preemptions = 0;
  int64_t shared = 0;
  for (const Setting s : {Setting{1000, 1, 500, 16},
                          {256, 64, 2000, 4},
                          {8, 64, 300, 4},
                          {16, 5, 200, 8},
                          {64, 64, 60, 4},
                          {7, 16, 90, 2},
                          {1, 3, 400, 1},
                          {33, 80, 200, 1}}) {
    FakeModel model(s.pages, s.page, 50, s.sequences);
    Engine engine(model, tokenizer,
                  {.max_batch_rows = s.rows, .max_sequences = s.sequences, .max_positions = 1000});
    const auto completions = complete_all(engine, requests);
    if (expected.empty()) expected = completions;
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(completions[i].tokens, expected[i].tokens);
      EXPECT_EQ(completions[i].text, expected[i].text);
      EXPECT_EQ(completions[i].finish, expected[i].finish);
      EXPECT_GE(std::ssize(completions[i].tokens), requests[i].sampling.min_tokens);
    }
    const EngineStatistics statistics = engine.statistics();
    preemptions += statistics.preemptions;
    shared += statistics.prompt_tokens_shared;
    int64_t prompts = 0;
    int64_t generated = 0;
    for (size_t i = 0; i < requests.size(); ++i) {
      prompts += completions[i].prompt_tokens;
      generated += std::ssize(completions[i].tokens);
    }
    EXPECT_EQ(statistics.prompt_tokens_computed + statistics.prompt_tokens_shared, prompts);
    EXPECT_EQ(statistics.generated_tokens, generated);
    EXPECT_EQ(statistics.pages_used, 0);
    EXPECT_EQ(statistics.steps, model.steps);
    EXPECT_EQ(statistics.running + statistics.waiting, 0);
  }
  EXPECT_GT(preemptions, 20);
  EXPECT_GT(shared, 500);
}

TEST(Engine, FlowsOfSeveralTurnsAndTheOrderOfResumption) {
  const Tokenizer tokenizer = byte_tokenizer();
  FakeModel model(200, 4, 257, 16);
  model.draw = [](const DrawContext& context) { return context.tokens[0]; };
  Engine engine(model, tokenizer, {.max_batch_rows = 32, .max_sequences = 16, .max_positions = 100});
  std::vector<std::string> order;
  const auto flow = [&](int name, std::vector<int64_t> lengths) -> Task<int64_t> {
    int64_t total = 0;
    for (const int64_t length : lengths) {
      Request request;
      request.prompt = {'a' + name, 'b'};
      request.adapter = 1 - name;  // so that the batch's order is another
      request.sampling.max_tokens = length;
      const Completion completion = co_await engine.complete(std::move(request));
      order.push_back(std::to_string(name) + ":" + completion.text);
      total += std::ssize(completion.tokens);
    }
    co_return total;
  };
  std::vector<Task<int64_t>> tasks;
  tasks.push_back(flow(0, {2, 1}));
  tasks.push_back(flow(1, {1, 1}));
  tasks.push_back(flow(2, {2}));
  for (auto& task : tasks) task.start();
  while (!engine.idle()) engine.step();
  EXPECT_EQ(order, (std::vector<std::string>{"1:b", "0:aa", "2:cc", "1:b", "0:a"}));
  EXPECT_EQ(tasks[0].result(), 3);
  EXPECT_EQ(tasks[1].result(), 2);
  EXPECT_EQ(tasks[2].result(), 2);
}

TEST(Engine, SharedPagesAreForgottenWhenAdaptersChange) {
  const Tokenizer tokenizer = byte_tokenizer();
  FakeModel model(50, 4, 50, 4);
  Engine engine(model, tokenizer, {.max_batch_rows = 32, .max_sequences = 4, .max_positions = 100});
  Request request;
  request.prompt.assign(12, 7);
  request.sampling.max_tokens = 1;
  EXPECT_EQ(complete_all(engine, {request})[0].shared_tokens, 0);
  EXPECT_EQ(complete_all(engine, {request})[0].shared_tokens, 11);
  engine.clear_shared_pages();
  EXPECT_EQ(complete_all(engine, {request})[0].shared_tokens, 0);
  auto task = complete(engine, request);
  task.start();
  EXPECT_THROW(engine.clear_shared_pages(), BugError);
}

}  // namespace
}  // namespace sl
