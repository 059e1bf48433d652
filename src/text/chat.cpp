#include "text/chat.hpp"

#include "core/error.hpp"
#include "text/unicode.hpp"

#include <algorithm>
#include <array>

namespace sl {
namespace {

constexpr std::string_view chatml_start = "<|im_start|>";
constexpr std::string_view chatml_end = "<|im_end|>";
constexpr std::string_view llama_header = "<|start_header_id|>";
constexpr std::string_view llama_header_end = "<|end_header_id|>";
constexpr std::string_view llama_end = "<|eot_id|>";
constexpr std::string_view llama_begin = "<|begin_of_text|>";

// The dates that the templates of Llama 3.1 write where the caller gives none. Those of Llama 3.2 write
// today's date; here it stays the same fixed one, so that a run does not depend on the day.
constexpr std::string_view llama31_preamble =
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// The quote of the string literal of an expression in which a template stands at `place`; 0 in plain text.
char quote_around(std::string_view chat_template, size_t place) {
  const std::string_view before = chat_template.substr(0, place);
  // One past the last of two marks; 0 where neither is.
  const auto after_last = [&](std::string_view a, std::string_view b) {
    return std::max(before.rfind(a) + 1, before.rfind(b) + 1);
  };
  const size_t opened = after_last("{{", "{%");
  if (opened <= after_last("}}", "%}")) return 0;
  char quote = 0;
  for (size_t i = opened; i < place; ++i) {
    const char c = before[i];
    if (quote != 0 && c == '\\') {
      ++i;
    } else if (quote != 0 ? c == quote : c == '\'' || c == '"') {
      quote = quote != 0 ? '\0' : c;
    }
  }
  return quote;
}

// A string literal of a template without its escapes.
std::string unescaped(std::string_view literal) {
  std::string text;
  for (size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] != '\\' || i + 1 == literal.size()) {
      text += literal[i];
      continue;
    }
    const char c = literal[++i];
    if (c == 'n' || c == 't') {
      text += c == 'n' ? '\n' : '\t';
    } else {
      text += c;
    }
  }
  return text;
}

// A template writes its default system line out: '<|im_start|>system\nLINE<|im_end|>', with a newline or an
// escaped one, in a string literal or as plain text. Other occurrences of the start join a variable or tools
// instead: the literal ends, or an expression begins, before the end of the turn.
std::string default_system_of(std::string_view chat_template) {
  for (const std::string_view newline : {"\n", "\\n"}) {
    const std::string start = std::string(chatml_start) + "system" + std::string(newline);
    for (size_t at = chat_template.find(start); at != std::string_view::npos;
         at = chat_template.find(start, at + 1)) {
      const std::string_view rest = chat_template.substr(at + start.size());
      const std::string_view line = rest.substr(0, rest.find(chatml_end));
      if (line.size() == rest.size() || line.empty()) continue;
      if (const char quote = quote_around(chat_template, at)) {
        // Its own quote may stand in it behind a backslash.
        size_t end = line.find(quote);
        while (end != std::string_view::npos && end > 0 && line[end - 1] == '\\')
          end = line.find(quote, end + 1);
        if (end == std::string_view::npos) return unescaped(line);
      } else if (newline == "\n" && !contains(line, "{{") && !contains(line, "{%")) {
        return std::string(line);
      }
    }
  }
  return {};
}

int32_t control_token(const Tokenizer& tokenizer, std::string_view text) {
  const auto id = tokenizer.id_of(text);
  if (id && tokenizer.is_special(*id)) return *id;
  throw InputError("the tokenizer lacks the control token " + std::string(text), tokenizer.where(),
                   "use an instruction-tuned model of the Qwen2, Llama 3 or SmolLM2 family");
}

}  // namespace

ChatFormat chat_format_of_template(std::string_view chat_template, std::string_view where) {
  if (contains(chat_template, chatml_start))
    return {ChatFamily::chatml, default_system_of(chat_template), ""};
  if (contains(chat_template, llama_header)) {
    const bool dated = contains(chat_template, "Cutting Knowledge Date: December 2023");
    return {ChatFamily::llama3, "", dated ? std::string(llama31_preamble) : std::string()};
  }
  throw InputError("the chat template is neither ChatML (<|im_start|>) nor Llama 3's (<|start_header_id|>)",
                   where, "use a model of the Qwen2, Llama 3 or SmolLM2 family");
}

ChatFormat chat_format(const Tokenizer& tokenizer) {
  if (!tokenizer.chat_template().empty()) {
    return chat_format_of_template(tokenizer.chat_template(), tokenizer.where());
  }
  if (tokenizer.id_of(chatml_start)) return {ChatFamily::chatml, "You are a helpful assistant.", ""};
  if (tokenizer.id_of(llama_header)) return {ChatFamily::llama3, "", ""};
  throw InputError("the tokenizer has neither a chat template nor the control tokens of a known family",
                   tokenizer.where(), "use a model of the Qwen2, Llama 3 or SmolLM2 family");
}

Chat::Chat(const Tokenizer& tokenizer, ChatFormat format)
    : tokenizer_(&tokenizer), format_(std::move(format)) {
  const bool chatml = format_.family == ChatFamily::chatml;
  if (chatml) {
    control_token(tokenizer, chatml_start);
  } else {
    for (const auto text : {llama_begin, llama_header, llama_header_end}) control_token(tokenizer, text);
  }
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
    if (chatml_) text("\n");
  }
  std::vector<Piece> take() { return std::move(done_); }

 private:
  const Chat& chat_;
  bool chatml_;
  std::vector<Piece> done_;
};

std::vector<Chat::Piece> Chat::pieces(std::span<const Message> messages, ChatOpen open) const {
  const bool chatml = format_.family == ChatFamily::chatml;
  Pieces pieces(*this);
  if (!chatml) pieces.control(llama_begin);

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
    pieces.text(chatml ? std::string_view(message.content) : trim(message.content), trained);
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
