// Thousands of steps under random load: submissions, cancellations, pools that are too small. The invariants
// are checked after every step, contexts by the fake model as it reads them back.
#include "core/error.hpp"
#include "support.hpp"

namespace sl {
namespace {

using namespace test;

Request random_request(Random& random, int32_t vocabulary) {
  Request request;
  // Prompts share beginnings: the same few streams of tokens cut at random lengths, sometimes with a tail.
  const int64_t family = random.below(4);
  for (int64_t i = 0, length = 1 + random.below(60); i < length; ++i)
    request.prompt.push_back(static_cast<int32_t>((i * i + family * 7) % vocabulary));
  for (int64_t i = random.below(6); i > 0; --i)
    request.prompt.push_back(static_cast<int32_t>(random.below(vocabulary)));
  request.adapter = static_cast<int32_t>(random.below(3)) - 1;
  request.stream = stream_of({.sample = random.below(50)});
  request.sampling.max_tokens = 1 + random.below(50);
  request.sampling.repetition_penalty = random.below(2) == 0 ? 1.0F : 1.1F;
  request.end_tokens = {5};
  if (random.below(3) == 0) request.watch = Language::en;
  if (!request.watch && random.below(3) == 0) request.sampling.beams = 2 + random.below(4);
  return request;
}

// A flow that asks once or twice.
Task<int64_t> asks(Engine& engine, Request request, bool again) {
  const Completion first = co_await engine.complete(request);
  if (!again || first.tokens.empty()) co_return std::ssize(first.tokens);
  request.prompt.insert(request.prompt.end(), first.tokens.begin(), first.tokens.end());
  const Completion second = co_await engine.complete(std::move(request));
  co_return std::ssize(first.tokens) + std::ssize(second.tokens);
}

struct Load {
  int64_t rows, sequences, pages, page;
  int64_t lag = 0;
};

class RandomLoad : public testing::TestWithParam<Load> {};

TEST_P(RandomLoad, InvariantsHoldAfterEveryStep) {
  const Load load = GetParam();
  const int32_t vocabulary = 40;
  const Tokenizer tokenizer = byte_tokenizer();
  FakeModel model(load.pages, load.page, vocabulary, load.sequences);
  model.lag_steps = load.lag;
  Engine engine(model, tokenizer,
                {.max_batch_rows = load.rows, .max_sequences = load.sequences, .max_positions = 150});
  int64_t widest = 0;
  model.on_run = [&](const Batch& batch, const SamplingRows& rows) {
    EXPECT_GT(batch.rows(), 0);
    EXPECT_LE(batch.rows(), load.rows);
    EXPECT_LE(batch.sequences(), load.sequences);
    EXPECT_EQ(batch.page_tables.size(), size_t(batch.sequences() * batch.pages_per_sequence));
    EXPECT_EQ(rows.slots.size(), batch.output_rows.size());
    std::set<int32_t> written;
    for (const int32_t slot : batch.slots) {
      EXPECT_TRUE(slot < 0 || written.insert(slot).second) << "two rows write one place";
    }
    widest = std::max(widest, batch.rows());
  };
  Random random(RandomAddress{.seed = 77, .sample = load.pages});
  std::vector<Task<int64_t>> tasks;
  int64_t cancelled = 0;
  int64_t done = 0;
  for (int step = 0; step < 3000; ++step) {
    if (tasks.size() < 40 && random.below(3) == 0) {
      tasks.push_back(asks(engine, random_request(random, vocabulary), random.below(2) == 0));
      tasks.back().start();
    }
    if (!tasks.empty() && random.below(25) == 0) {
      const auto victim = tasks.begin() + random.below(std::ssize(tasks));
      cancelled += !victim->done();
      tasks.erase(victim);
      engine.scheduler().check();
    }
    engine.step();
    engine.scheduler().check();
    done += static_cast<int64_t>(std::erase_if(tasks, [](const Task<int64_t>& task) { return task.done(); }));
    if (HasFailure()) break;
  }
  EXPECT_GT(done, 50);
  EXPECT_GT(cancelled, 10);
  EXPECT_GT(widest, 0);
  tasks.clear();  // cancels what is left
  EXPECT_TRUE(engine.idle());
  engine.scheduler().check();
  EXPECT_EQ(engine.statistics().pages_used, 0);
  EXPECT_EQ(engine.scheduler().running() + engine.scheduler().waiting(), 0);
}

INSTANTIATE_TEST_SUITE_P(Pools, RandomLoad,
                         testing::Values(Load{64, 16, 400, 4}, Load{32, 16, 40, 4}, Load{16, 8, 31, 4},
                                         Load{5, 12, 120, 1}, Load{200, 40, 25, 8}, Load{16, 8, 6, 8},
                                         Load{64, 16, 400, 4, 1}, Load{32, 16, 40, 4, 1},
                                         Load{16, 8, 31, 4, 1}, Load{5, 12, 120, 1, 1},
                                         Load{200, 40, 25, 8, 1}, Load{16, 8, 6, 8, 1}));

TEST(Cancellation, ACoroutineMayDestroyAnotherThatIsReadyToo) {
  const Tokenizer tokenizer = byte_tokenizer();
  FakeModel model(50, 4, 50, 4);
  Engine engine(model, tokenizer, {.max_batch_rows = 32, .max_sequences = 4, .max_positions = 100});
  Request request;
  request.prompt = {1};
  request.sampling.max_tokens = 1;
  bool second_ran = false;
  const auto runs = [&]() -> Task<void> {  // a coroutine uses its lambda's captures: the lambda must live on
    co_await engine.complete(request);
    second_ran = true;
  };
  Task<void> second = runs();
  const auto destroyer = [&]() -> Task<void> {
    co_await engine.complete(request);
    second = Task<void>();
  };
  Task<void> first = destroyer();
  first.start();
  second.start();
  engine.step();
  EXPECT_TRUE(first.done());
  EXPECT_FALSE(second_ran);
  EXPECT_TRUE(engine.idle());
  engine.scheduler().check();
}

TEST(Cancellation, SuspendedCoroutinesMayOutliveTheEngine) {
  const Tokenizer tokenizer = byte_tokenizer();
  FakeModel model(50, 4, 50, 4);
  Request request;
  request.prompt = {1, 2, 3};
  Task<Completion> task;
  {
    Engine engine(model, tokenizer, {.max_batch_rows = 32, .max_sequences = 4, .max_positions = 100});
    task = complete(engine, request);
    task.start();
    engine.step();
  }
  EXPECT_FALSE(task.done());
  task = Task<Completion>();
}

TEST(Cancellation, PagesOfACancelledRequestAreAvailableAtOnce) {
  const Tokenizer tokenizer = byte_tokenizer();
  FakeModel model(50, 4, 50, 4);
  Engine engine(model, tokenizer, {.max_batch_rows = 32, .max_sequences = 4, .max_positions = 100});
  Request request;
  request.prompt.assign(20, 1);
  Task<Completion> task = complete(engine, request);
  task.start();
  engine.step();
  EXPECT_EQ(engine.statistics().pages_used, 5);
  EXPECT_EQ(engine.statistics().running, 1);
  task = Task<Completion>();
  EXPECT_EQ(engine.statistics().pages_used, 0);
  EXPECT_EQ(engine.statistics().running, 0);
  EXPECT_TRUE(engine.idle());
}

TEST(Load, ThousandsOfRequestsAtOnce) {
  const Tokenizer tokenizer = byte_tokenizer();
  FakeModel model(500, 16, 50, 64);
  Engine engine(model, tokenizer, {.max_batch_rows = 256, .max_sequences = 64, .max_positions = 1000});
  std::vector<Request> requests(4000);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].prompt = {static_cast<int32_t>(i % 50), 2, 3};
    requests[i].stream = i;
    requests[i].sampling.max_tokens = 4;
  }
  const auto completions = complete_all(engine, requests, false);
  for (const Completion& completion : completions) EXPECT_EQ(completion.tokens.size(), 4);
  EXPECT_EQ(engine.statistics().generated_tokens, 16000);
}

TEST(Failure, AnExceptionOfTheModelReachesWhoSteps) {
  const Tokenizer tokenizer = byte_tokenizer();
  FakeModel model(50, 4, 50, 4);
  model.on_run = [](const Batch&, const SamplingRows&) { throw LibraryError("MPI", "call", "reason"); };
  Task<Completion> task;
  {
    Engine engine(model, tokenizer, {.max_batch_rows = 32, .max_sequences = 4, .max_positions = 100});
    Request request;
    request.prompt = {1};
    task = complete(engine, request);
    task.start();
    EXPECT_THROW(engine.step(), LibraryError);
  }
  EXPECT_FALSE(task.done());
}

}  // namespace
}  // namespace sl
