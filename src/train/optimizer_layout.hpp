// How replicas share the optimizer's state, and in which pieces they sum their gradients: pure functions of
// the flat numbers of what is trained (Parameters::flat, Adapter::flat) and of the replica.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sl {

// Numbers that each replica holds alone, its addresses aligned; 0 for one replica, which holds all. What is
// left over behind the shares, fewer than 32 a replica, all hold.
int64_t state_share(int64_t numbers, int replicas);

// Flat numbers begin .. begin + count, which lie at `at` in the parts of the state of a replica.
struct HeldNumbers {
  int64_t begin, at, count;
};
// What a replica holds of so many numbers: its share, and what is left over. Of a share of 0: everything.
std::vector<HeldNumbers> held_numbers(int64_t numbers, int64_t share, int replicas, int replica);

// Flat numbers of the gradient that are summed at once, for one replica that holds them or for all.
struct GradientBucket {
  int64_t begin, end;
  int owner;  // -1: all replicas
};
// The same on every replica, which sum the same buckets in the same order, whenever they do.
struct BucketPlan {
  std::vector<GradientBucket> buckets;  // from the end of the flat numbers to their begin; 64 MiB at most
  std::vector<size_t> from_layer_on;    // of each layer: the first so many lie in it and later ones
};
// `layer_begins`: where the numbers of each layer begin, ascending; what lies before them all is complete
// last.
BucketPlan plan_buckets(const std::vector<int64_t>& layer_begins, int64_t numbers, int64_t share,
                        int replicas);

}  // namespace sl
