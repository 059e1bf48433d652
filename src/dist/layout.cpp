#include "dist/layout.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/error.hpp"

namespace sl {
namespace {

struct Shape {
  int64_t query_heads, key_heads, ffn, vocabulary;
};

// Why tp ranks cannot share a model; empty when they can.
std::string obstacle_to(const Shape& shape, int tp) {
  if (tp < 1) return "at least one rank is needed";
  if (shape.query_heads % tp != 0) {
    return fmt::format("its {} query heads are not a multiple of {}", shape.query_heads, tp);
  }
  if (shape.key_heads % tp != 0 && tp % shape.key_heads != 0) {
    return fmt::format("{} is neither a divisor nor a multiple of its {} key-value heads", tp,
                       shape.key_heads);
  }
  if (shape.ffn % tp != 0) return fmt::format("its ffn of {} is not a multiple of {}", shape.ffn, tp);
  if (shape.vocabulary < tp) return fmt::format("its vocabulary has only {} tokens", shape.vocabulary);
  return {};
}

}  // namespace

Grid grid_of(int ranks, int tp) {
  if (tp < 1 || ranks % tp != 0) {
    throw InputError(fmt::format("{} ranks are not a multiple of {}", ranks, tp), "--tp",
                     "start a multiple of tp ranks, or choose a tp that divides them");
  }
  return {ranks / tp, tp};
}

Place place_of(int rank, const Grid& grid) {
  require(rank >= 0 && rank < grid.ranks(), "rank outside the grid");
  return {rank / grid.tp, rank % grid.tp};
}

Range share_of(int64_t n, int parts, int part) {
  require(n >= 0 && parts > 0 && part >= 0 && part < parts, "no such share");
  const int64_t small = n / parts;
  const int64_t larger = n % parts;  // shares with one more
  const int64_t begin = part * small + std::min<int64_t>(part, larger);
  return {begin, begin + small + (part < larger ? 1 : 0)};
}

int64_t samples_to_take(int64_t left, int replicas, int64_t room) {
  require(left >= 0 && replicas > 0 && room > 0, "no samples to take");
  return std::clamp<int64_t>(left / (int64_t{2} * replicas), 1, room);
}

HeadShare head_share(int64_t query_heads, int64_t key_heads, int tp, int tp_rank) {
  require(key_heads > 0 && query_heads % key_heads == 0 && query_heads % tp == 0 &&
              (key_heads % tp == 0 || tp % key_heads == 0),
          "heads that tp ranks cannot share");
  const Range queries = share_of(query_heads, tp, tp_rank);
  const int64_t group = query_heads / key_heads;
  return {queries, {queries.begin / group, (queries.end - 1) / group + 1}};
}

Range vocabulary_share(int64_t vocabulary, int tp, int tp_rank) { return share_of(vocabulary, tp, tp_rank); }

void check_tensor_parallel(int64_t query_heads, int64_t key_heads, int64_t ffn, int64_t vocabulary, int tp) {
  require(query_heads > 0 && key_heads > 0 && query_heads % key_heads == 0, "impossible numbers of heads");
  const Shape shape{query_heads, key_heads, ffn, vocabulary};
  const std::string obstacle = obstacle_to(shape, tp);
  if (obstacle.empty()) return;
  std::vector<int> sizes;
  for (int size = 1; size <= query_heads; ++size) {
    if (obstacle_to(shape, size).empty()) sizes.push_back(size);
  }
  throw InputError(fmt::format("{} ranks cannot share this model: {}", tp, obstacle), "--tp",
                   fmt::format("use {}{}", sizes.size() > 1 ? "one of " : "", fmt::join(sizes, ", ")));
}

}  // namespace sl
