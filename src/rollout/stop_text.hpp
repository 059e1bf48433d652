// The text of a completion while it grows, and the stop strings that may end it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sl {

// What ends the text does not depend on how the text was cut into tokens: it is the stop string that is
// complete first; of several that are complete with the same byte, the longest.
class StopText {
 public:
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Appends text that has become complete. True when a stop string was completed: text() then ends before it
  // and no more is appended. Stop strings completed while `may_stop` is false are text like any other.
  bool append(std::string_view piece, bool may_stop);

  // All that was appended, up to the stop string.
  const std::string& text() const { return text_; }
  bool stopped() const { return stopped_; }
  // The beginning of text() that no stop string can take back any more; it only grows.
  std::string_view settled() const;

 private:
  std::vector<std::string> stops_;
  std::string text_;
  bool stopped_ = false;
};

}  // namespace sl
