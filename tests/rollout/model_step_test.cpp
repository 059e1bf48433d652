// The engine over a real, small, random model: what the scheduler emits must make the model compute the same
// thing whatever the plan of steps.
#include "rollout/model_step.hpp"

#include <cmath>
#include <memory>
#include <optional>

#include "core/error.hpp"
#include "support.hpp"
#include "tests/kernels/on_devices.hpp"
#include "tests/rollout/plain_beam_search.hpp"

namespace sl {
namespace {

using namespace test;

ModelConfig small_config() {
  ModelConfig config;
  config.architecture = Architecture::qwen2;
  config.vocabulary = 257;
  config.hidden = 64;
  config.ffn = 96;
  config.layers = 2;
  config.heads = 4;
  config.key_heads = 2;
  config.head_dim = 64;  // what a GPU has kernels of its own for
  config.max_positions = 256;
  config.qkv_bias = true;
  return config;
}

struct SmallModel {
  explicit SmallModel(const Context& place)
      : context(place),
        parameters(random_parameters(config, shard, context, 3,
                                     ServedAdapters::room_for(std::vector<LoraShape>(2)))) {}

  Context context;
  ModelConfig config = small_config();
  Shard shard{config, 1, 0};
  Parameters parameters;
  std::unique_ptr<Communicator> alone = make_local_communicator();
  Transformer transformer{.context = context,
                          .config = &config,
                          .shard = &shard,
                          .parameters = &parameters,
                          .tensor_parallel = alone.get()};
};

class ModelStepTest : public OnDevices {
 protected:
  void SetUp() override {
    OnDevices::SetUp();
    if (!IsSkipped()) model_ = std::make_unique<SmallModel>(deterministic());
  }

  std::unique_ptr<SmallModel> model_;
  const Tokenizer tokenizer_ = byte_tokenizer();
  const int32_t end_ = 256;
  // A GPU's own kernels take pages of multiples of 16.
  const int64_t page_ = on_host() ? 4 : 16;
  std::optional<Inference> inference_;

  // An adapter that makes a difference.
  Adapter adapter(uint64_t seed) const {
    Adapter result(model_->config, model_->shard, LoraShape(), model_->context.storage_place(), "adapter");
    initialise(result, seed);
    Random random(RandomAddress{.seed = seed});
    std::vector<float> numbers = download_floats(result.flat());
    for (float& number : numbers) number += static_cast<float>(random.uniform() - 0.5) * 0.2F;
    upload_floats(result.flat(), numbers);
    return result;
  }

  // The logits after at most 64 tokens, without chunks or shared pages.
  std::vector<float> whole_forward_pass(const std::vector<int32_t>& tokens) {
    constexpr int64_t most = 64;
    if (!inference_) {
      inference_.emplace(
          model_->transformer,
          InferenceLimits{
              .rows = most, .sequences = 1, .outputs = 1, .pages_per_sequence = 1, .tokens_per_page = most});
    }
    const KvCache cache(model_->config, model_->shard, model_->context.storage_place(), 1, most);
    Batch batch;
    const auto count = static_cast<int32_t>(tokens.size());
    for (int32_t i = 0; i < count; ++i) {
      batch.tokens.push_back(tokens[static_cast<size_t>(i)]);
      batch.positions.push_back(i);
      batch.slots.push_back(i);
    }
    batch.query_offsets = {0, count};
    batch.context_lengths = {count};
    batch.page_tables = {0};
    batch.pages_per_sequence = 1;
    batch.output_rows = {count - 1};
    return download<float>(inference_->forward(batch, cache));
  }

  std::vector<Request> requests() const {
    std::vector<Request> all;
    Random random(RandomAddress{.seed = 9});
    for (int i = 0; i < 24; ++i) {
      Request request;
      request.prompt = bytes_of(i % 3 == 0 ? "Write about the sea. " : "Write about");
      for (int64_t more = random.below(10); more > 0; --more)
        request.prompt.push_back(static_cast<int32_t>(random.below(256)));
      request.adapter = i % 3 - 1;
      request.stream = stream_of({.sample = i});
      request.end_tokens = {end_};
      request.sampling.max_tokens = 20 + i;
      if (i % 4 == 0) request.sampling.temperature = 0;
      if (i % 5 == 0) request.sampling.repetition_penalty = 1;
      if (i % 6 == 0) request.sampling.min_tokens = 10;
      request.sampling.stop = {};
      all.push_back(request);
    }
    return all;
  }
};

TEST_P(ModelStepTest, TokensDoNotDependOnThePlanOfSteps) {
  const Adapter first = adapter(1);
  const Adapter second = adapter(2);
  struct Setting {
    int64_t rows, sequences, pages, page;
  };
  std::vector<Completion> expected;
  const int64_t few = 160 / page_;  // pages that make some sequences give way
  for (const Setting s : {Setting{256, 1, 64, 16},
                          {64, 24, 2400 / page_, page_},
                          {7, 10, 480 / page_, page_},
                          {32, 24, few, page_}}) {
    const EngineOptions options{.max_batch_rows = s.rows,
                                .max_sequences = s.sequences,
                                .max_positions = model_->config.max_positions};
    ModelStep step(model_->transformer, options, s.pages, s.page);
    step.set_adapters(std::vector{&first, &second});
    Engine engine(step, tokenizer_, options);
    const auto completions = complete_all(engine, requests());
    if (expected.empty()) expected = completions;
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(completions[i].tokens, expected[i].tokens) << i;
    EXPECT_EQ(engine.statistics().preemptions > 0, s.pages == few);
    EXPECT_GT(engine.statistics().prompt_tokens_shared, 0);
  }
  std::set<std::vector<int32_t>> different;
  for (const Completion& completion : expected) different.insert(completion.tokens);
  EXPECT_GT(different.size(), 20);
}

// Greedy decoding by whole forward passes without pages shared or chunks, penalty and ban applied here.
TEST_P(ModelStepTest, GreedyTokensAreTheArgmaxOfWholeForwardPasses) {
  const EngineOptions options{
      .max_batch_rows = 8, .max_sequences = 4, .max_positions = model_->config.max_positions};
  ModelStep step(model_->transformer, options, 160 / page_, page_);
  Engine engine(step, tokenizer_, options);
  Request request;
  request.prompt = bytes_of("Once upon a time");
  request.sampling = {
      .temperature = 0, .repetition_penalty = 1.3F, .max_tokens = 30, .min_tokens = 30, .stop = {}};
  request.end_tokens = {end_, 'q', 'e', 7, 200};
  const auto completion = complete_all(engine, {request}).front();
  ASSERT_EQ(completion.tokens.size(), 30);

  std::vector<int32_t> tokens = request.prompt;
  for (const int32_t token : completion.tokens) {
    std::vector<float> logits = whole_forward_pass(tokens);
    for (const int32_t seen : std::set<int32_t>(tokens.begin(), tokens.end())) {
      float& logit = logits[static_cast<size_t>(seen)];
      logit = logit > 0 ? logit / 1.3F : logit * 1.3F;
    }
    for (const int32_t banned : request.end_tokens) logits[static_cast<size_t>(banned)] = -INFINITY;
    const auto largest = std::ranges::max_element(logits) - logits.begin();
    ASSERT_EQ(token, largest) << "after " << tokens.size() << " tokens";
    tokens.push_back(token);
  }
}

// Beams that share and copy pages and rows of the bitmap, against whole sequences. Other requests run beside
// them.
TEST_P(ModelStepTest, BeamSearchIsThatOfWholeForwardPasses) {
  std::vector<Request> searches(3);
  for (size_t i = 0; i < searches.size(); ++i) {
    searches[i].prompt = bytes_of(i == 1 ? "Once upon a time" : "Write");
    searches[i].sampling = {.repetition_penalty = i == 0 ? 1.0F : 1.3F,
                            .max_tokens = 20,
                            .min_tokens = i == 1 ? 8 : 0,
                            .beams = 3 + static_cast<int64_t>(i),
                            .length_penalty = 0.8,
                            .stop = {}};
    for (int32_t token = 0; token < 257; token += 9) searches[i].end_tokens.push_back(token);
    searches[i].end_tokens.resize(i == 2 ? 24 : 15);
  }
  std::vector<Request> all = requests();
  for (Request& request : all) request.adapter = -1;
  all.insert(all.begin(), searches.begin(), searches.end());
  const EngineOptions options{
      .max_batch_rows = 48, .max_sequences = 16, .max_positions = model_->config.max_positions};
  ModelStep step(model_->transformer, options, 640 / page_, page_);
  Engine engine(step, tokenizer_, options);
  const auto completions = complete_all(engine, all);

  for (size_t i = 0; i < searches.size(); ++i) {
    const Request& request = searches[i];
    const PlainBeam expected =
        plain_beam_search(request, [&](const std::vector<int32_t>& tokens, int64_t generated) {
          const std::vector<float> logits = whole_forward_pass(tokens);
          double sum = 0.0;
          for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
          std::vector<double> scores;
          for (const float logit : logits) scores.push_back(static_cast<double>(logit) - std::log(sum));
          for (const int32_t seen : std::set<int32_t>(tokens.begin(), tokens.end()))
            scores[static_cast<size_t>(seen)] *= static_cast<double>(request.sampling.repetition_penalty);
          for (const int32_t end : request.end_tokens) {
            if (generated < request.sampling.min_tokens) scores[static_cast<size_t>(end)] = -INFINITY;
          }
          return scores;
        });
    std::vector<int32_t> tokens = request.prompt;
    tokens.insert(tokens.end(), completions[i].tokens.begin(), completions[i].tokens.end());
    EXPECT_EQ(tokens, expected.tokens) << i;
    EXPECT_NEAR(completions[i].score, expected.score, 1e-5) << i;
  }
}

TEST_P(ModelStepTest, RowsThatMustNotDrawDifferentTokensInOneBatch) {
  const EngineOptions options{
      .max_batch_rows = 64, .max_sequences = 8, .max_positions = model_->config.max_positions};
  ModelStep step(model_->transformer, options, 320 / page_, page_);
  Engine engine(step, tokenizer_, options);
  Request request;
  request.prompt = bytes_of("Once");
  request.sampling = {.temperature = 0, .repetition_penalty = 1, .max_tokens = 1, .stop = {}};
  const int32_t favourite = complete_all(engine, {request}).front().tokens.front();
  Request banned = request;
  banned.sampling.min_tokens = 1;
  banned.end_tokens = {favourite};
  const int32_t next = complete_all(engine, {banned}).front().tokens.front();
  ASSERT_NE(next, favourite);
  Request both = banned;
  both.end_tokens = {next, favourite};
  Request other = banned;
  other.end_tokens = {next};
  const auto completions = complete_all(engine, {request, banned, request, both, other, banned});
  EXPECT_EQ(completions[0].tokens.front(), favourite);
  EXPECT_EQ(completions[1].tokens.front(), next);
  EXPECT_EQ(completions[2].tokens.front(), favourite);
  EXPECT_NE(completions[3].tokens.front(), next);
  EXPECT_NE(completions[3].tokens.front(), favourite);
  EXPECT_EQ(completions[4].tokens.front(), favourite);
  EXPECT_EQ(completions[5].tokens.front(), next);
}

TEST_P(ModelStepTest, AnAdapterThatIsNotThereIsABug) {
  const EngineOptions options{
      .max_batch_rows = 8, .max_sequences = 4, .max_positions = model_->config.max_positions};
  ModelStep step(model_->transformer, options, 160 / page_, page_);
  Engine engine(step, tokenizer_, options);
  Request request;
  request.prompt = {1};
  request.adapter = 0;
  auto task = complete(engine, request);
  task.start();
  EXPECT_THROW(engine.step(), BugError);
}

SL_ON_DEVICES(ModelStepTest);

}  // namespace
}  // namespace sl
