// What the user may have meant by a name that does not exist.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sl {

// The one of `names` that is the fewest typing errors away (a letter too many, missing, wrong, or swapped
// with its neighbour), or "" when none is near: more than two errors, or than a third of the name where that
// is more.
std::string nearest_name(std::string_view name, const std::vector<std::string>& names);

// "did you mean --input?" with `prefix` before the name, or `otherwise` when nothing is near.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& names,
                         std::string_view prefix, std::string_view otherwise);

}  // namespace sl
