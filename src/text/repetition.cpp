#include "text/repetition.hpp"

#include "core/error.hpp"
#include "text/unicode.hpp"

#include <algorithm>

namespace sl {
namespace {

constexpr uint64_t hash_base = 0x9E3779B97F4A7C15ULL;  // odd, so that multiplying loses nothing

}  // namespace

RunIndex::RunIndex(int64_t length) : length_(length), drop_factor_(1) {
  require(length >= 1, "a run has at least one word");
  for (int64_t i = 1; i < length; ++i) drop_factor_ *= hash_base;
}

bool RunIndex::add(std::string_view word) {
  if (repeated_) return true;
  const auto id = ids_.try_emplace(std::string(word), static_cast<int32_t>(ids_.size())).first->second;
  const auto spread = [](int32_t value) {
    return (static_cast<uint64_t>(value) + 1) * 0xD6E8FEB86659FD93ULL;
  };
  const auto count = static_cast<int64_t>(words_.size());
  if (count >= length_) hash_ -= spread(words_[static_cast<size_t>(count - length_)]) * drop_factor_;
  hash_ = hash_ * hash_base + spread(id);
  words_.push_back(id);
  const int64_t start = count + 1 - length_;
  if (start < 0) return false;
  const auto [first, last] = starts_.equal_range(hash_);
  repeated_ = std::any_of(first, last, [&](const auto& entry) { return same_run(entry.second, start); });
  if (!repeated_) starts_.emplace(hash_, start);
  return repeated_;
}

bool RunIndex::same_run(int64_t first, int64_t second) const {
  const auto begin = words_.begin();
  return std::equal(begin + first, begin + first + length_, begin + second);
}

int64_t repetition_run(Language language) { return language == Language::en ? 10 : 13; }

RepetitionWatch::RepetitionWatch(Language language) : language_(language), index_(repetition_run(language)) {}

bool RepetitionWatch::append(std::string_view text) {
  for (size_t at = 0; at < text.size() && !index_.repeated();) {
    const CodePoint point = decode_at(text, at);
    const std::string_view bytes = text.substr(at, static_cast<size_t>(point.length));
    at += bytes.size();
    if (language_ == Language::en) {
      append_english(point.value, bytes);
    } else {
      append_chinese(point.value, bytes);
    }
  }
  return index_.repeated();
}

void RepetitionWatch::append_english(char32_t value, std::string_view bytes) {
  if (!is_space(value)) {
    word_ += bytes;
  } else if (!word_.empty()) {
    index_.add(word_);
    word_.clear();
  }
}

// White space waits in trailing_ until something follows it: a response that ends there is trimmed. Where the
// text begins with white space, that and the ASCII run it flows into are left out: whether they are part of
// the first token depends on whether the text's beginning is trimmed.
void RepetitionWatch::append_chinese(char32_t value, std::string_view bytes) {
  if (!started_) {
    started_ = true;
    in_first_token_ = is_space(value);
  }
  if (in_first_token_) {
    if (value < 0x80 || is_space(value)) return;
    in_first_token_ = false;
  }
  if (is_space(value)) {
    trailing_ += bytes;
    return;
  }
  const auto finish_run = [&] {
    if (!word_.empty()) index_.add(word_);
    word_.clear();
  };
  for (size_t at = 0; at < trailing_.size();) {
    const CodePoint space = decode_at(trailing_, at);
    const std::string_view space_bytes =
        std::string_view(trailing_).substr(at, static_cast<size_t>(space.length));
    at += space_bytes.size();
    if (space.value < 0x80) {
      word_ += space_bytes;
    } else {
      finish_run();
      index_.add(space_bytes);
    }
  }
  trailing_.clear();
  if (value < 0x80) {
    word_ += bytes;
  } else {
    finish_run();
    index_.add(bytes);
  }
}

}  // namespace sl
