// How deep a JSON text may nest. The parser has no limit, but what copies and writes its values calls itself
// for each level: a file of a million brackets would end the program without a word.
#pragma once

#include <string_view>

namespace sl {

constexpr int deepest_json = 256;  // files of models and runs nest less than 20 levels

// Of a text that is not JSON the answer means nothing; the parser refuses it anyway.
inline bool nests_too_deep(std::string_view json) {
  int depth = 0;
  bool inside_string = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (inside_string) {
      if (c == '\\') ++i;
      if (c == '"') inside_string = false;
    } else if (c == '"') {
      inside_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > deepest_json) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace sl
