#include "text/chat_format.hpp"

#include "core/error.hpp"
#include "text/unicode.hpp"

#include <algorithm>
#include <optional>

namespace sl {
namespace {

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

// Where a literal ends whose rest begins `text`: its quote that stands behind no backslash.
size_t end_of_literal(std::string_view text, char quote) {
  for (size_t end = 0; end < text.size(); ++end) {
    if (text[end] == '\\') {
      ++end;
    } else if (text[end] == quote) {
      return end;
    }
  }
  return std::string_view::npos;
}

// The string literal at the beginning of `text`, its escapes resolved; nothing when there is none.
std::optional<std::string> literal_at(std::string_view text) {
  if (text.empty() || (text[0] != '\'' && text[0] != '"')) return std::nullopt;
  const size_t end = end_of_literal(text.substr(1), text[0]);
  if (end == std::string_view::npos) return std::nullopt;
  return unescaped(text.substr(1, end));
}

// `text` from its first character on that is none of `begin`.
std::string_view without_leading(std::string_view text, std::string_view begin) {
  return text.substr(std::min(text.find_first_not_of(begin), text.size()));
}

// The value that a template gives the variable `name` by a literal: {% set NAME = 'LINE' %}.
std::string literal_set_to(std::string_view chat_template, std::string_view name) {
  const std::string set = "set " + std::string(name);
  for (size_t at = chat_template.find(set); at != std::string_view::npos;
       at = chat_template.find(set, at + 1)) {
    std::string_view rest = without_leading(chat_template.substr(at + set.size()), " ");
    if (!rest.starts_with('=')) continue;
    if (auto value = literal_at(without_leading(rest.substr(1), " "))) return *value;
  }
  return {};
}

// A template writes its default system line out: '<|im_start|>system\nLINE<|im_end|>', with a newline or an
// escaped one, in a string literal or as plain text; or joins a variable that it has set to the line before,
// as LLaMA-Factory's do. Other occurrences of the start join what is given, or tools: the literal ends, or an
// expression begins, before the end of the turn.
std::string default_system_of(std::string_view chat_template) {
  for (const std::string_view newline : {"\n", "\\n"}) {
    const std::string start = std::string(chatml_start) + "system" + std::string(newline);
    for (size_t at = chat_template.find(start); at != std::string_view::npos;
         at = chat_template.find(start, at + 1)) {
      const std::string_view rest = chat_template.substr(at + start.size());
      const std::string_view line = rest.substr(0, rest.find(chatml_end));
      if (line.size() == rest.size() || line.empty()) continue;
      if (const char quote = quote_around(chat_template, at)) {
        const size_t end = end_of_literal(line, quote);
        if (end == std::string_view::npos) return unescaped(line);
        const std::string_view joined = without_leading(line.substr(end + 1), " +~");
        const std::string_view name = joined.substr(0, joined.find_first_of(" +~"));
        if (std::string value = literal_set_to(chat_template, name); !name.empty() && !value.empty())
          return value;
      } else if (newline == "\n" && !contains(line, "{{") && !contains(line, "{%")) {
        return std::string(line);
      }
    }
  }
  return {};
}

// Whether a message's content goes through Jinja's trim.
bool trims_contents(std::string_view chat_template) {
  for (const std::string_view content : {"message['content']", "message[\"content\"]", "message.content"}) {
    for (size_t at = chat_template.find(content); at != std::string_view::npos;
         at = chat_template.find(content, at + 1)) {
      const std::string_view rest = without_leading(chat_template.substr(at + content.size()), " ");
      if (rest.starts_with('|') && without_leading(rest.substr(1), " ").starts_with("trim")) return true;
      if (rest.starts_with(".strip()")) return true;
    }
  }
  return false;
}

// Whether somewhere a line end follows the end of a turn: within its literal, in one joined to it, or as
// text.
bool ends_lines_after_turns(std::string_view chat_template) {
  bool ends_turns = false;
  for (size_t at = chat_template.find(chatml_end); at != std::string_view::npos;
       at = chat_template.find(chatml_end, at + 1)) {
    ends_turns = true;
    const std::string_view rest = without_leading(chat_template.substr(at + chatml_end.size()), " '\"+~{}-");
    if (rest.starts_with('\n') || rest.starts_with("\\n")) return true;
  }
  return !ends_turns;
}

// What a template begins with, as an expression: {{ '<|endoftext|>' }} or {{ bos_token }}. Without the
// braces.
std::string_view first_expression(std::string_view chat_template) {
  const std::string_view text = trim(chat_template);
  if (!text.starts_with("{{")) return {};
  const std::string_view inside = text.substr(2, text.find("}}") - 2);
  return trim(without_leading(inside.substr(0, inside.find_last_not_of("-") + 1), "-"));
}

}  // namespace

ChatFormat chat_format_of_template(std::string_view chat_template, std::string_view where) {
  if (contains(chat_template, chatml_start)) {
    const std::string_view first = first_expression(chat_template);
    std::string begin = literal_at(first).value_or("");
    // Not the beginning of a first turn, nor a literal that is joined to others.
    if (begin.size() + 2 != first.size() || contains(begin, chatml_start)) begin.clear();
    return {.family = ChatFamily::chatml,
            .default_system = default_system_of(chat_template),
            .system_preamble = "",
            .begin = begin,
            .trims = trims_contents(chat_template),
            .line_after_turn = ends_lines_after_turns(chat_template)};
  }
  if (contains(chat_template, llama_header)) {
    const bool dated = contains(chat_template, "Cutting Knowledge Date: December 2023");
    return {.family = ChatFamily::llama3,
            .default_system = "",
            .system_preamble = dated ? std::string(llama31_preamble) : std::string(),
            .begin = std::string(llama_begin),
            .trims = true,
            .line_after_turn = false};
  }
  throw InputError("the chat template is neither ChatML (<|im_start|>) nor Llama 3's (<|start_header_id|>)",
                   where, "use a model of the Qwen2, Llama 3 or SmolLM2 family");
}

ChatFormat chat_format(const Tokenizer& tokenizer) {
  if (!tokenizer.chat_template().empty()) {
    ChatFormat format = chat_format_of_template(tokenizer.chat_template(), tokenizer.where());
    if (format.begin.empty() && tokenizer.bos() && first_expression(tokenizer.chat_template()) == "bos_token")
      format.begin = tokenizer.token_bytes(*tokenizer.bos());
    return format;
  }
  // By the family's usual marks.
  if (tokenizer.id_of(chatml_start)) {
    ChatFormat format = chat_format_of_template(chatml_start, tokenizer.where());
    format.default_system = "You are a helpful assistant.";
    return format;
  }
  if (tokenizer.id_of(llama_header)) return chat_format_of_template(llama_header, tokenizer.where());
  throw InputError("the tokenizer has neither a chat template nor the control tokens of a known family",
                   tokenizer.where(), "use a model of the Qwen2, Llama 3 or SmolLM2 family");
}

}  // namespace sl
