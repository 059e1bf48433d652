// The text of a completion while its tokens come.
#pragma once

#include <cstdint>
#include <string>

#include "rollout/request.hpp"
#include "rollout/stop_text.hpp"
#include "text/detokenizer.hpp"
#include "text/tokenizer.hpp"

namespace sl {

// Copies go on independently: the beams of a search.
class GrowingText {
 public:
  GrowingText(const Tokenizer& tokenizer, const Request& request)
      : detokenizer_(tokenizer), text_(request.sampling.stop) {}

  // Takes a token, the `generated`-th of the completion. True when it ends the text: an end token, or one
  // that completes a stop string.
  bool push(const Request& request, int32_t token, int64_t generated);
  // Nothing more comes: the whole text, with what is left of an unfinished character.
  std::string finish();
  // See StopText.
  std::string_view settled() const { return text_.settled(); }

 private:
  IncrementalDetokenizer detokenizer_;
  StopText text_;
};

}  // namespace sl
