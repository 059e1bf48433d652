// Chat turns of the model families, as tokens. The turns equal what Transformers' apply_chat_template makes
// (without tools) of contents that spell no control token.
#pragma once

#include "text/chat_format.hpp"
#include "text/tokenizer.hpp"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sl {

struct Message {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

// How the tokens end.
enum class ChatOpen {
  closed,  // after the last message
  reply,   // with the header of an assistant turn, so that the model's next token is the first of its answer
  begun,   // inside the last message, which is the assistant's: the model continues it
};

struct TrainingTokens {
  std::vector<int32_t> tokens;
  // As long as `tokens`: 1 where a token is to be predicted, that is the assistant's content and end-of-turn
  // tokens.
  std::vector<uint8_t> mask;
};

class Chat {
 public:
  // The tokenizer outlives this object. InputError when it lacks a control token of the format.
  Chat(const Tokenizer& tokenizer, ChatFormat format);
  explicit Chat(const Tokenizer& tokenizer) : Chat(tokenizer, chat_format(tokenizer)) {}

  // Only the turns have control tokens. One that a content spells is plain text, so that no content leaves
  // its turn; Transformers would make it a control token. Llama 3 trims the white space around a content (but
  // not of a begun answer, where it counts). InputError for an unknown role.
  std::vector<int32_t> encode(std::span<const Message> messages, ChatOpen open) const;

  // The conversation up to the end-of-turn token of its last answer (what ChatML writes after it is left out:
  // nothing learns from it). Contents of the assistant are tokenized apart from their header, as they are
  // when generated; for contents that begin with no white space the tokens equal encode()'s. InputError
  // unless it ends with an assistant's message.
  TrainingTokens encode_training(std::span<const Message> messages) const;

  // Ends an assistant's turn.
  int32_t end_of_turn() const { return end_of_turn_; }
  // Every token at which generation ends: the end of turn, the end of text, and what else the family has.
  const std::vector<int32_t>& stop_tokens() const { return stop_tokens_; }
  const ChatFormat& format() const { return format_; }

  // The conversation as text, control tokens spelled out.
  std::string render(std::span<const Message> messages, ChatOpen open) const;

 private:
  // A control token of the turns, or text between two.
  struct Piece {
    std::string text;
    bool control = false;
    bool trained = false;  // an assistant's content, or its end-of-turn token
  };
  class Pieces;
  std::vector<Piece> pieces(std::span<const Message> messages, ChatOpen open) const;
  // Text between two control tokens is tokenized as a whole.
  void encode(std::span<const Piece> pieces, std::vector<int32_t>& out) const;
  std::string_view end_of_turn_text() const;

  const Tokenizer* tokenizer_;
  ChatFormat format_;
  int32_t end_of_turn_ = 0;
  std::vector<int32_t> stop_tokens_;
};

}  // namespace sl
