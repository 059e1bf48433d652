#include "text/tokenizer.hpp"

#include "core/error.hpp"
#include "text/unicode.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <shared_mutex>

namespace sl {

// Tokens of words seen before. Text repeats its words, so that most need no merging.
class Tokenizer::WordCache {
 public:
  bool find(std::string_view word, std::vector<int32_t>& out) const {
    const std::shared_lock lock(mutex_);
    const auto found = tokens_.find(word);
    if (found == tokens_.end()) return false;
    out.insert(out.end(), found->second.begin(), found->second.end());
    return true;
  }

  void store(std::string_view word, std::span<const int32_t> tokens) {
    const std::unique_lock lock(mutex_);
    if (tokens_.size() >= most_words) tokens_.clear();
    tokens_.try_emplace(std::string(word), tokens.begin(), tokens.end());
  }

  static bool worthwhile(std::string_view word) { return word.size() <= longest_word; }

 private:
  static constexpr size_t longest_word = 64;  // bytes
  static constexpr size_t most_words = 1 << 15;

  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view word) const { return std::hash<std::string_view>{}(word); }
  };
  mutable std::shared_mutex mutex_;
  std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> tokens_;
};

namespace {

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// Unicode normalization form C.
std::string composed(std::string_view text) {
  utf8proc_uint8_t* result = nullptr;
  const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                   static_cast<utf8proc_ssize_t>(text.size()), &result,
                                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  if (length < 0) throw LibraryError("utf8proc", "utf8proc_map", utf8proc_errmsg(length));
  return {reinterpret_cast<const char*>(result), static_cast<size_t>(length)};
}

AddedTokens select(const TokenizerSpec& spec, bool normalized) {
  std::vector<AddedToken> selected;
  for (const AddedToken& token : spec.added) {
    if (token.normalized != normalized) continue;
    selected.push_back(token);
    if (normalized && spec.compose) selected.back().content = composed(token.content);
  }
  return AddedTokens(std::move(selected));
}

}  // namespace

Tokenizer::Tokenizer(TokenizerSpec spec)
    : spec_(std::move(spec)),
      bpe_(spec_.tokens, spec_.merges, spec_.whole_words_first, spec_.unknown),
      raw_(select(spec_, false)),
      normalized_(select(spec_, true)),
      cache_(std::make_unique<WordCache>()) {
  spec_.merges = {};  // in bpe_ now
  // A token added beside the model's vocabulary has its bytes only from here on: merging never makes it.
  for (const AddedToken& token : spec_.added) {
    const auto id = static_cast<size_t>(token.id);
    if (id >= spec_.tokens.size()) spec_.tokens.resize(id + 1);
    spec_.tokens[id] = token.content;
  }
  special_.resize(spec_.tokens.size(), false);
  for (const AddedToken& token : spec_.added) special_[static_cast<size_t>(token.id)] = token.special;
  for (size_t id = 0; id < spec_.tokens.size(); ++id) {
    if (!spec_.tokens[id].empty()) ids_.try_emplace(spec_.tokens[id], static_cast<int32_t>(id));
  }
  const auto check = [&](int32_t id, const std::string& what) {
    if (id >= 0 && id < vocabulary_size()) return;
    throw InputError("token id " + std::to_string(id) + what + " is outside the " +
                         std::to_string(vocabulary_size()) + " tokens",
                     spec_.where, "use the files as the model's authors published them");
  };
  for (const auto id : {spec_.bos, spec_.eos}) {
    if (id) check(*id, " for the beginning or end of text");
  }
  for (const auto* added : {&spec_.prefix, &spec_.suffix}) {
    for (const int32_t id : *added) check(id, " that is put before or after a text");
  }
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  if (const auto bad = first_invalid_utf8(text)) {
    throw InputError("byte " + std::to_string(*bad) + " of a text of " + std::to_string(text.size()) +
                         " bytes is not UTF-8",
                     "text to tokenize", "convert the input to UTF-8");
  }
  std::vector<int32_t> out;
  if (add_special) out = spec_.prefix;
  for (const auto& piece : raw_.split(text, parse_special)) {
    if (piece.id) {
      out.push_back(*piece.id);
      continue;
    }
    const bool compose = spec_.compose && !is_ascii(piece.text);
    const std::string storage = compose ? composed(piece.text) : std::string();
    for (const auto& part :
         normalized_.split(compose ? std::string_view(storage) : piece.text, parse_special)) {
      if (part.id) {
        out.push_back(*part.id);
      } else {
        encode_plain(part.text, out);
      }
    }
  }
  if (add_special) out.insert(out.end(), spec_.suffix.begin(), spec_.suffix.end());
  return out;
}

void Tokenizer::encode_plain(std::string_view text, std::vector<int32_t>& out) const {
  std::deque<std::string> owned;
  for (const std::string_view word : spec_.pre_tokenizer.split(text, owned)) {
    const bool cached = WordCache::worthwhile(word);
    if (cached && cache_->find(word, out)) continue;
    const size_t before = out.size();
    bpe_.encode(word, out);
    if (cached) cache_->store(word, std::span(out).subspan(before));
  }
}

std::string Tokenizer::decode(std::span<const int32_t> tokens, bool skip_special) const {
  std::string text;
  for (const int32_t id : tokens) {
    if (!skip_special || !is_special(id)) text += token_bytes(id);
  }
  return text;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  require(id >= 0, "token ids are not negative");
  return id < vocabulary_size() ? std::string_view(spec_.tokens[static_cast<size_t>(id)])
                                : std::string_view();
}

bool Tokenizer::is_special(int32_t id) const {
  require(id >= 0, "token ids are not negative");
  return id < vocabulary_size() && special_[static_cast<size_t>(id)];
}

std::optional<int32_t> Tokenizer::id_of(std::string_view bytes) const {
  const auto found = ids_.find(std::string(bytes));
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

MergeList::MergeList(const std::vector<std::string>& tokens, std::string_view where) : where_(where) {
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) ids_.try_emplace(tokens[id], static_cast<int32_t>(id));
  }
}

void MergeList::add(const std::string& left, const std::string& right) {
  merges_.push_back({id(left), id(right), id(left + right)});
}

int32_t MergeList::id(const std::string& bytes) const {
  const auto found = ids_.find(bytes);
  if (found != ids_.end()) return found->second;
  throw InputError("merge " + std::to_string(merges_.size()) + " of the tokenizer speaks of '" + bytes +
                       "', which is not in its vocabulary",
                   where_, "use the files as the model's authors published them");
}

std::vector<Bpe::Merge> MergeList::take() {
  if (merges_.empty()) {
    throw InputError("the tokenizer has no merges", where_,
                     "only byte-level BPE with its merges is supported");
  }
  return std::move(merges_);
}

}  // namespace sl
