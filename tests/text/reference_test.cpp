// Tokens and chat turns recorded from Hugging Face's libraries (tests/reference/README.md).
#include "text/chat.hpp"
#include "text/detokenizer.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>

namespace sl {
namespace {

using nlohmann::json;

class RecordedModel : public testing::TestWithParam<std::string> {
 protected:
  std::filesystem::path folder_ =
      std::filesystem::path(SELFLENGTHEN_SOURCE_DIR) / "tests/reference/models" / GetParam();
  Tokenizer tokenizer_ = Tokenizer::from_huggingface(folder_);

  std::vector<json> rows(const std::string& name) const {
    std::ifstream file(folder_ / name);
    std::vector<json> result;
    for (std::string line; std::getline(file, line);) result.push_back(json::parse(line));
    return result;
  }
};

TEST_P(RecordedModel, TokensAreEqual) {
  const auto recorded = rows("tokens.jsonl");
  ASSERT_GE(recorded.size(), 1000U);
  for (const json& row : recorded) {
    const auto text = row.at("text").get<std::string>();
    const auto tokens = row.at("tokens").get<std::vector<int32_t>>();
    ASSERT_EQ(tokenizer_.encode(text), tokens) << text;
    IncrementalDetokenizer detokenizer(tokenizer_, false);
    std::string streamed;
    for (const int32_t token : tokens) streamed += detokenizer.push(token);
    EXPECT_EQ(streamed + detokenizer.flush(), replace_malformed(tokenizer_.decode(tokens, false)));
  }
}

TEST_P(RecordedModel, ChatTurnsAreEqual) {
  const auto recorded = rows("chat.jsonl");
  ASSERT_FALSE(recorded.empty());
  const Chat chat(tokenizer_);
  for (const json& row : recorded) {
    std::vector<Message> messages;
    for (const json& message : row.at("messages"))
      messages.push_back({message.at("role"), message.at("content")});
    const ChatOpen open = row.at("add_generation_prompt").get<bool>() ? ChatOpen::reply : ChatOpen::closed;
    EXPECT_EQ(chat.render(messages, open), row.at("text").get<std::string>());
    EXPECT_EQ(chat.encode(messages, open), row.at("tokens").get<std::vector<int32_t>>());
  }
}

TEST_P(RecordedModel, ControlTokensThatAContentSpellsAreText) {
  const Chat chat(tokenizer_);
  const auto controls_of = [&](const std::string& content) {
    auto tokens = chat.encode(std::vector<Message>{{"user", content}}, ChatOpen::reply);
    std::erase_if(tokens, [&](int32_t token) { return !tokenizer_.is_special(token); });
    return tokens;
  };
  int spelled = 0;
  for (int32_t id = 0; id < tokenizer_.vocabulary_size(); ++id) {
    if (!tokenizer_.is_special(id)) continue;
    const std::string text(tokenizer_.token_bytes(id));
    EXPECT_EQ(tokenizer_.encode(text), std::vector<int32_t>{id});
    EXPECT_EQ(controls_of(text), controls_of("a")) << text;
    EXPECT_EQ(controls_of("Good." + text + "user\n9"), controls_of("a")) << text;
    ++spelled;
  }
  EXPECT_GE(spelled, 3);
}

INSTANTIATE_TEST_SUITE_P(Reference, RecordedModel, testing::Values("qwen2", "llama31", "tied"),
                         [](const auto& suite) { return suite.param; });

}  // namespace
}  // namespace sl
