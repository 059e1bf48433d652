// A sequence as the scheduler sees it: tokens, the pages that hold their keys and values, and how far both
// go.
#pragma once

#include <cstdint>
#include <vector>

#include "rollout/request.hpp"

namespace sl {

struct Sequence {
  int64_t id = 0;     // order of submission; the beams of a request have consecutive ones
  int64_t first = 0;  // id of the request's first beam, or its own
  Request request;    // its prompt is moved into `tokens`
  // Prompt, then what was generated. The last `pending` ones are being drawn in steps under way: each is
  // -1 - (its output row) until it is known.
  std::vector<int32_t> tokens;
  int64_t pending = 0;
  int64_t prompt_tokens = 0;   // how many of them are the prompt
  std::vector<int32_t> pages;  // page i holds tokens i * G .. (i + 1) * G; empty while waiting
  int64_t computed = 0;        // tokens whose keys and values are in the pages
  int64_t tree_pages = 0;      // leading pages that are in the prefix tree: all the full ones
  int32_t slot = -1;           // row of the bitmap of seen tokens, while running
  int64_t marked = 0;          // tokens whose bits are set in that row
  int64_t shared = 0;          // prompt tokens that the prefix tree gave at first sight
  int64_t reached = 0;         // tokens that were computed or shared before; below it, work is done again
  bool drawn = false;          // a beam: its best tokens are known, it waits for the other beams
  bool planned = false;        // rows of it are in the step that is being planned

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t generated() const { return size() - prompt_tokens; }
  int64_t known() const { return size() - pending; }
  int64_t uncomputed() const { return size() - computed; }
  // As far as they are known.
  std::vector<int32_t> generated_tokens() const {
    return {tokens.begin() + prompt_tokens, tokens.begin() + known()};
  }
};

}  // namespace sl
