// Which rank holds what: pure functions of (rank, grid), without communication (DESIGN 1 and 2).
#pragma once

#include <cstdint>

namespace sl {

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// dp replicas of tp ranks each; consecutive ranks form a replica.
struct Grid {
  int dp = 1, tp = 1;
  int ranks() const { return dp * tp; }
};

struct Place {
  int replica = 0, tp_rank = 0;
  bool operator==(const Place&) const = default;
};

// InputError when tp does not divide the number of ranks.
Grid grid_of(int ranks, int tp);
Place place_of(int rank, const Grid& grid);

// Part `part` of n things in `parts` consecutive shares that differ by one at most, larger ones first.
Range share_of(int64_t n, int parts, int part);

// How many samples a replica takes that has room for so many more, when `left` are not handed out yet: half
// of its even share of them, at least one, so that no replica sits on work while another has none.
int64_t samples_to_take(int64_t left, int replicas, int64_t room);

// Attention heads of a tensor-parallel rank. Key-value heads are replicated where tp exceeds their number.
struct HeadShare {
  Range query_heads, key_heads;
};
HeadShare head_share(int64_t query_heads, int64_t key_heads, int tp, int tp_rank);

// Vocabulary rows of a rank: share_of, so that any vocabulary can be split without padding in the weights.
// Shares differ by one row at most, the first are the largest; who gathers them pads to the share of rank 0.
Range vocabulary_share(int64_t vocabulary, int tp, int tp_rank);

// InputError, naming the number and the sizes that would work, when tp does not divide what it must: the
// query heads, the ffn, and the key-value heads (or these divide tp).
void check_tensor_parallel(int64_t query_heads, int64_t key_heads, int64_t ffn, int64_t vocabulary, int tp);

}  // namespace sl
