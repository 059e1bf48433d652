#include "tests/model/reference.hpp"

#include "dist/communicator_mpi.hpp"

namespace sl::test {
namespace {

struct Case {
  std::string model, figures;
};

class SmallModel : public testing::TestWithParam<std::tuple<Case, Device>> {
 protected:
  std::unique_ptr<Communicator> alone_ = make_local_communicator();
  LoadedModel model_{
      open_model(reference(std::get<0>(GetParam()).model)), {std::get<1>(GetParam()), false}, *alone_};
  std::string figures_ = reference(std::get<0>(GetParam()).figures);
};

TEST_P(SmallModel, LogProbabilitiesAreTransformers) {
  EXPECT_GT(expect_log_probabilities(model_, figures_ + "/logprobs.jsonl", 1e-4), 400);
}

INSTANTIATE_TEST_SUITE_P(, SmallModel,
                         testing::Combine(testing::Values(Case{"models/qwen2", "models/qwen2"},
                                                          Case{"models/llama31", "models/llama31"},
                                                          Case{"models/tied", "models/tied"},
                                                          Case{"models/yarn", "models/yarn"},
                                                          Case{"gguf/llama31/model.gguf", "gguf/llama31"},
                                                          Case{"gguf/qwen2/model.gguf", "gguf/qwen2"}),
                                          testing::Values(Device::cpu, Device::debug)));

class SmallModelGreedy : public testing::TestWithParam<std::string> {};

TEST_P(SmallModelGreedy, ContinuationsAreTransformers) {
  const auto alone = make_local_communicator();
  for (const bool deterministic : {false, true}) {
    const LoadedModel model(open_model(reference("models/" + GetParam())), {Device::cpu, deterministic},
                            *alone);
    EXPECT_EQ(expect_greedy(model, reference("models/" + GetParam() + "/greedy.jsonl")), 5);
    EXPECT_EQ(expect_beams(model, reference("models/" + GetParam() + "/beams.jsonl")), 6);
  }
}

INSTANTIATE_TEST_SUITE_P(, SmallModelGreedy, testing::Values("qwen2", "llama31", "tied", "yarn"));

class SmolLM2 : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    ASSERT_TRUE(std::filesystem::exists(smollm2_path())) << "run tools/fetch_model.sh first";
    alone = make_local_communicator();
    model = std::make_unique<LoadedModel>(open_model(smollm2_path()), Context{}, *alone);
  }
  static void TearDownTestSuite() { model.reset(); }
  void SetUp() override { ASSERT_NE(model, nullptr); }

  static inline std::unique_ptr<Communicator> alone;
  static inline std::unique_ptr<LoadedModel> model;
};

TEST_F(SmolLM2, TokensAreTheModelsOwn) {
  const std::vector<JsonRow> rows = read_json_lines(reference("smollm2/tokens.jsonl"));
  ASSERT_EQ(rows.size(), 1000U);
  for (const JsonRow& row : rows) {
    EXPECT_EQ(model->tokenizer().encode(row.value.at("text").get<std::string>()),
              row.value.at("tokens").get<std::vector<int32_t>>())
        << "line " << row.line;
  }
}

TEST_F(SmolLM2, ChatTurnsAreTheModelsOwn) {
  for (const JsonRow& row : read_json_lines(reference("smollm2/chat.jsonl"))) {
    std::vector<Message> messages;
    for (const nlohmann::json& turn : row.value.at("messages"))
      messages.push_back({turn.at("role"), turn.at("content")});
    const bool reply = row.value.at("add_generation_prompt").get<bool>();
    EXPECT_EQ(model->chat().encode(messages, reply ? ChatOpen::reply : ChatOpen::closed),
              row.value.at("tokens").get<std::vector<int32_t>>())
        << "line " << row.line;
  }
}

TEST_F(SmolLM2, LogProbabilitiesAreTransformers) {
  EXPECT_GE(expect_log_probabilities(*model, reference("smollm2/logprobs.jsonl"), 1e-3), 2000);
}

TEST_F(SmolLM2, GreedyContinuationsAreTransformers) {
  EXPECT_EQ(expect_greedy(*model, reference("smollm2/greedy.jsonl")), 20);
}

TEST_F(SmolLM2, BeamSearchesAreTransformers) {
  EXPECT_EQ(expect_beams(*model, reference("smollm2/beams.jsonl")), 35);
}

TEST_F(SmolLM2, GreedyContinuationsWithPenaltyAreTransformers) {
  EXPECT_EQ(expect_greedy(*model, reference("smollm2/greedy_penalty.jsonl")), 5);
}

}  // namespace
}  // namespace sl::test
