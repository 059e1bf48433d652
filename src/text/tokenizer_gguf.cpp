// Tokenizer from a GGUF file's metadata.
#include "text/tokenizer.hpp"

#include "core/error.hpp"
#include "text/byte_level.hpp"

namespace sl {
namespace {

constexpr int32_t type_control = 3;
constexpr int32_t type_user_defined = 4;

[[noreturn]] void refuse(const TokenizerParts& parts, const std::string& what) {
  throw InputError(what, parts.where, "use a GGUF file of a Qwen2, Llama 3 or SmolLM2 model");
}

}  // namespace

Tokenizer Tokenizer::from_parts(const TokenizerParts& parts) {
  if (parts.model != "gpt2") {
    refuse(parts, "the tokenizer is of kind '" + parts.model + "', not byte-level BPE ('gpt2')");
  }
  if (parts.tokens.empty()) refuse(parts, "the file has no tokens");
  if (!parts.token_types.empty() && parts.token_types.size() != parts.tokens.size()) {
    refuse(parts, std::to_string(parts.token_types.size()) + " token types for " +
                      std::to_string(parts.tokens.size()) + " tokens");
  }
  TokenizerSpec spec;
  spec.where = parts.where;
  spec.pre_tokenizer = pre_tokenizer_of_gguf(parts.pre, parts.where);
  const bool llama = parts.pre.starts_with("llama");
  spec.compose = parts.pre == "qwen2";
  spec.whole_words_first = llama;
  spec.tokens.resize(parts.tokens.size());
  for (size_t i = 0; i < parts.tokens.size(); ++i) {
    const int32_t type = parts.token_types.empty() ? 1 : parts.token_types[i];
    if (type == type_control || type == type_user_defined) {
      spec.added.push_back(
          {.id = static_cast<int32_t>(i), .content = parts.tokens[i], .special = type == type_control});
    } else {
      // Padding tokens of some files are outside the alphabet; no text encodes to them.
      spec.tokens[i] = bytes_of_byte_level(parts.tokens[i]).value_or("");
    }
  }
  MergeList merges(spec.tokens, parts.where);
  for (const std::string& line : parts.merges) {
    const size_t space = line.find(' ', 1);
    const auto left = bytes_of_byte_level(std::string_view(line).substr(0, space));
    const auto right = space == std::string::npos
                           ? std::nullopt
                           : bytes_of_byte_level(std::string_view(line).substr(space + 1));
    if (!left || !right || left->empty() || right->empty())
      refuse(parts, "the merge '" + line + "' is not a pair of tokens");
    merges.add(*left, *right);
  }
  spec.merges = merges.take();
  spec.bos = parts.bos;
  spec.eos = parts.eos;
  spec.chat_template = parts.chat_template;
  if (parts.add_bos.value_or(llama)) {
    if (!parts.bos) refuse(parts, "the tokenizer is to add a beginning-of-text token but does not name it");
    spec.prefix.push_back(*parts.bos);
  }
  return Tokenizer(std::move(spec));
}

}  // namespace sl
