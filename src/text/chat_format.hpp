// How the chat turns of a model are written. The Jinja source of a chat template is not run, only searched
// for the marks of its family, and of what templates of that family do differently.
#pragma once

#include "text/tokenizer.hpp"

#include <string>
#include <string_view>

namespace sl {

inline constexpr std::string_view chatml_start = "<|im_start|>";
inline constexpr std::string_view chatml_end = "<|im_end|>";
inline constexpr std::string_view llama_header = "<|start_header_id|>";
inline constexpr std::string_view llama_header_end = "<|end_header_id|>";
inline constexpr std::string_view llama_end = "<|eot_id|>";
inline constexpr std::string_view llama_begin = "<|begin_of_text|>";

enum class ChatFamily { chatml, llama3 };

struct ChatFormat {
  ChatFamily family = ChatFamily::chatml;
  // System line that begins a conversation which brings none. Empty: no system turn then.
  std::string default_system;
  // Llama 3.1 and later: every conversation begins with a system turn of these dates, before its system line.
  std::string system_preamble;
  // Of ChatML; Llama 3 begins with a token, trims, and has no line end between turns.
  std::string begin = {};       // control token before all turns; empty: none
  bool trims = false;           // white space around contents goes
  bool line_after_turn = true;  // a line end follows each turn
};

// The format a template's source stands for. A ChatML template's own default system line is taken from it.
// InputError, naming `where`, when it shows the marks of neither family.
ChatFormat chat_format_of_template(std::string_view chat_template, std::string_view where);

// The same for a tokenizer. One without a template is taken by the family's control tokens in its vocabulary,
// with "You are a helpful assistant." as the default system line of ChatML.
ChatFormat chat_format(const Tokenizer& tokenizer);

}  // namespace sl
