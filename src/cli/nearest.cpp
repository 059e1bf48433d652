#include "cli/nearest.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace sl {
namespace {

// Optimal string alignment.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t wrong = a[i - 1] == b[j - 1] ? 0 : 1;
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + wrong});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::string nearest_name(std::string_view name, const std::vector<std::string>& names) {
  std::string best;
  size_t least = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& one : names) {
    const size_t distance = edit_distance(name, one);
    // A name of few letters is not near to everything that is as short.
    if (distance < least && distance < one.size()) {
      least = distance;
      best = one;
    }
  }
  return best;
}

std::string did_you_mean(std::string_view name, const std::vector<std::string>& names,
                         std::string_view prefix, std::string_view otherwise) {
  const std::string near = nearest_name(name, names);
  return near.empty() ? std::string(otherwise) : fmt::format("did you mean {}{}?", prefix, near);
}

}  // namespace sl
