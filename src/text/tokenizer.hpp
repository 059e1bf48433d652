// Byte-level byte-pair encoding, as the tokenizers of Qwen2, Llama 3 and SmolLM2 do it: text <-> token ids,
// equal to Hugging Face's library.
#pragma once

#include "text/added_tokens.hpp"
#include "text/bpe.hpp"
#include "text/pre_tokenizer.hpp"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sl {

// What a GGUF file says about its tokenizer (keys tokenizer.ggml.*), for Tokenizer::from_parts.
struct TokenizerParts {
  std::string where;                 // the file, for messages
  std::string model = "gpt2";        // .model: "gpt2" is byte-level BPE, the only kind we know
  std::string pre;                   // .pre: name of the pre-tokenizer
  std::vector<std::string> tokens;   // .tokens, in the byte-level alphabet, control tokens as they are
  std::vector<int32_t> token_types;  // .token_type: 3 control, 4 user-defined; empty: all normal
  std::vector<std::string> merges;   // .merges: "a b"
  std::optional<int32_t> bos;        // .bos_token_id
  std::optional<int32_t> eos;        // .eos_token_id
  std::optional<bool> add_bos;       // .add_bos_token; where absent, Llama 3 adds it and the others do not
  std::string chat_template;         // tokenizer.chat_template
};

// All a Tokenizer is made of; the loaders of both file kinds fill it.
struct TokenizerSpec {
  std::string where;
  std::vector<std::string> tokens;  // bytes of each id; empty where an id has no token
  std::vector<Bpe::Merge> merges;
  bool whole_words_first = false;
  std::optional<int32_t> unknown;
  std::vector<AddedToken> added;
  PreTokenizer pre_tokenizer;
  bool compose = false;         // normalization to NFC
  std::vector<int32_t> prefix;  // special tokens that encode(.., add_special) puts before and after
  std::vector<int32_t> suffix;
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
  std::string chat_template;  // Jinja source, empty where there is none
};

// Immutable once made; const members may be called from several threads.
class Tokenizer {
 public:
  // Reads tokenizer.json and, where there, tokenizer_config.json and chat_template.jinja. InputError names
  // the file and what in it is missing, malformed or of a kind we do not know.
  static Tokenizer from_huggingface(const std::filesystem::path& folder);
  static Tokenizer from_parts(const TokenizerParts& parts);
  explicit Tokenizer(TokenizerSpec spec);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // add_special: with the tokens the model's own post-processor adds (a beginning-of-text token, where it has
  // one). parse_special: control tokens written in the text become their ids; else they are encoded as plain
  // text. InputError, naming the byte offset, when `text` is not UTF-8.
  std::vector<int32_t> encode(std::string_view text, bool add_special = false,
                              bool parse_special = true) const;

  // The bytes of the tokens in a row; they need not be valid UTF-8 where the tokens end inside a character.
  std::string decode(std::span<const int32_t> tokens, bool skip_special = true) const;

  // Empty for ids >= vocabulary_size(): the head of a model may be padded. Ids are not negative.
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;
  int64_t vocabulary_size() const { return static_cast<int64_t>(spec_.tokens.size()); }
  // The id of the token of exactly these bytes (control tokens: as they are written).
  std::optional<int32_t> id_of(std::string_view bytes) const;

  std::optional<int32_t> bos() const { return spec_.bos; }
  std::optional<int32_t> eos() const { return spec_.eos; }
  const std::string& chat_template() const { return spec_.chat_template; }
  const std::string& where() const { return spec_.where; }  // the file it came from, for messages

 private:
  class WordCache;
  void encode_plain(std::string_view text, std::vector<int32_t>& out) const;

  TokenizerSpec spec_;
  Bpe bpe_;
  AddedTokens raw_;         // looked for in the text as given
  AddedTokens normalized_;  // looked for after normalization
  std::vector<bool> special_;
  std::unordered_map<std::string, int32_t> ids_;
  std::unique_ptr<WordCache> cache_;
};

// Builds merges from pairs of byte-level strings; shared by both loaders.
class MergeList {
 public:
  MergeList(const std::vector<std::string>& tokens, std::string_view where);
  // left, right: bytes of two tokens whose concatenation is a token too; InputError otherwise.
  void add(const std::string& left, const std::string& right);
  // InputError when there is no merge at all.
  std::vector<Bpe::Merge> take();

 private:
  int32_t id(const std::string& bytes) const;

  std::string where_;
  std::unordered_map<std::string, int32_t> ids_;
  std::vector<Bpe::Merge> merges_;
};

}  // namespace sl
