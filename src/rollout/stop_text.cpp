#include "rollout/stop_text.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace sl {

bool StopText::append(std::string_view piece, bool may_stop) {
  require(!stopped_, "text appended after a stop string");
  const size_t known = text_.size();
  text_ += piece;
  if (!may_stop) return false;
  for (size_t end = known + 1; end <= text_.size(); ++end) {
    const std::string_view so_far = std::string_view(text_).substr(0, end);
    size_t longest = 0;
    for (const std::string& stop : stops_) {
      if (so_far.ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) {
      text_.resize(end - longest);
      stopped_ = true;
      return true;
    }
  }
  return false;
}

std::string_view StopText::settled() const {
  if (stopped_) return text_;
  size_t pending = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, text_.size()); length > pending; --length) {
      if (text_.ends_with(std::string_view(stop).substr(0, length))) pending = length;
    }
  }
  return std::string_view(text_).substr(0, text_.size() - pending);
}

}  // namespace sl
