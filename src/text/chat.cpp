#include "text/chat.hpp"

#include "core/error.hpp"
#include "text/unicode.hpp"

#include <algorithm>
#include <array>

namespace sl {
namespace {

int32_t control_token(const Tokenizer& tokenizer, std::string_view text) {
  const auto id = tokenizer.id_of(text);
  if (id && tokenizer.is_special(*id)) return *id;
  throw InputError("the tokenizer lacks the control token " + std::string(text), tokenizer.where(),
                   "use an instruction-tuned model of the Qwen2, Llama 3 or SmolLM2 family");
}

}  // namespace

Chat::Chat(const Tokenizer& tokenizer, ChatFormat format)
    : tokenizer_(&tokenizer), format_(std::move(format)) {
  const bool chatml = format_.family == ChatFamily::chatml;
  if (chatml) {
    control_token(tokenizer, chatml_start);
  } else {
    for (const auto text : {llama_header, llama_header_end}) control_token(tokenizer, text);
  }
  if (!format_.begin.empty()) control_token(tokenizer, format_.begin);
  end_of_turn_ = control_token(tokenizer, end_of_turn_text());
  stop_tokens_ = {end_of_turn_};
  if (tokenizer.eos()) stop_tokens_.push_back(*tokenizer.eos());
  for (const std::string_view text : {"<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"}) {
    if (const auto id = tokenizer.id_of(text)) stop_tokens_.push_back(*id);
  }
  std::sort(stop_tokens_.begin(), stop_tokens_.end());
  stop_tokens_.erase(std::unique(stop_tokens_.begin(), stop_tokens_.end()), stop_tokens_.end());
}

std::string_view Chat::end_of_turn_text() const {
  return format_.family == ChatFamily::chatml ? chatml_end : llama_end;
}

// Writes a conversation down, piece by piece.
class Chat::Pieces {
 public:
  explicit Pieces(const Chat& chat) : chat_(chat), chatml_(chat.format_.family == ChatFamily::chatml) {}

  void header(std::string_view role) {
    control(chatml_ ? chatml_start : llama_header);
    text(role);
    if (!chatml_) control(llama_header_end);
    text(chatml_ ? "\n" : "\n\n");
  }
  // Text that is not trained on joins what stands before it.
  void text(std::string_view text, bool trained = false) {
    if (text.empty()) return;
    if (trained || done_.empty() || done_.back().control) done_.push_back({"", false, trained});
    done_.back().text += text;
  }
  void control(std::string_view text, bool trained = false) {
    done_.push_back({std::string(text), true, trained});
  }
  void end_turn(bool trained = false) {
    control(chat_.end_of_turn_text(), trained);
    if (chat_.format_.line_after_turn) text("\n");
  }
  std::vector<Piece> take() { return std::move(done_); }

 private:
  const Chat& chat_;
  bool chatml_;
  std::vector<Piece> done_;
};

std::vector<Chat::Piece> Chat::pieces(std::span<const Message> messages, ChatOpen open) const {
  Pieces pieces(*this);
  if (!format_.begin.empty()) pieces.control(format_.begin);

  const bool own_system = !messages.empty() && messages.front().role == "system";
  if (!own_system || !format_.system_preamble.empty()) {
    const std::string first =
        format_.system_preamble +
        (own_system ? std::string(trim(messages.front().content)) : format_.default_system);
    if (!first.empty()) {
      pieces.header("system");
      pieces.text(first);
      pieces.end_turn();
    }
    if (own_system) messages = messages.subspan(1);
  }
  require(open != ChatOpen::begun || (!messages.empty() && messages.back().role == "assistant"),
          "a begun conversation ends with the assistant's message");
  for (size_t i = 0; i < messages.size(); ++i) {
    const Message& message = messages[i];
    static constexpr std::array<std::string_view, 3> roles = {"system", "user", "assistant"};
    if (std::find(roles.begin(), roles.end(), message.role) == roles.end()) {
      throw InputError("unknown role '" + message.role + "'", "message " + std::to_string(i + 1),
                       "use system, user or assistant");
    }
    pieces.header(message.role);
    if (open == ChatOpen::begun && i + 1 == messages.size()) {
      pieces.text(message.content);
      return pieces.take();
    }
    const bool trained = message.role == "assistant";
    pieces.text(format_.trims ? trim(message.content) : std::string_view(message.content), trained);
    pieces.end_turn(trained);
  }
  if (open == ChatOpen::reply) pieces.header("assistant");
  return pieces.take();
}

std::string Chat::render(std::span<const Message> messages, ChatOpen open) const {
  std::string text;
  for (const Piece& piece : pieces(messages, open)) text += piece.text;
  return text;
}

void Chat::encode(std::span<const Piece> pieces, std::vector<int32_t>& out) const {
  std::string text;
  const auto end_text = [&] {
    const auto tokens = tokenizer_->encode(text, /*add_special=*/false, /*parse_special=*/false);
    out.insert(out.end(), tokens.begin(), tokens.end());
    text.clear();
  };
  for (const Piece& piece : pieces) {
    if (piece.control) {
      end_text();
      out.push_back(control_token(*tokenizer_, piece.text));
    } else {
      text += piece.text;
    }
  }
  end_text();
}

std::vector<int32_t> Chat::encode(std::span<const Message> messages, ChatOpen open) const {
  std::vector<int32_t> tokens;
  encode(pieces(messages, open), tokens);
  return tokens;
}

TrainingTokens Chat::encode_training(std::span<const Message> messages) const {
  if (messages.empty() || messages.back().role != "assistant") {
    throw InputError("the conversation does not end with an answer of the assistant", "training messages",
                     "end it with a message of role assistant");
  }
  auto parts = pieces(messages, ChatOpen::closed);
  if (!parts.back().trained) parts.pop_back();
  TrainingTokens result;
  for (const Piece& piece : parts) {
    encode(std::span(&piece, 1), result.tokens);
    result.mask.resize(result.tokens.size(), piece.trained ? 1 : 0);
  }
  return result;
}

}  // namespace sl
