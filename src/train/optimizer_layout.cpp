#include "train/optimizer_layout.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace sl {
namespace {

constexpr int64_t bucket_elements = int64_t{16} << 20;

}  // namespace

int64_t state_share(int64_t numbers, int replicas) {
  constexpr int64_t together = 32;  // numbers; their addresses stay aligned
  require(numbers >= 0 && replicas > 0, "no numbers to share");
  return replicas > 1 ? numbers / replicas / together * together : 0;
}

std::vector<HeldNumbers> held_numbers(int64_t numbers, int64_t share, int replicas, int replica) {
  require(replica >= 0 && replica < replicas && share * replicas <= numbers, "no such share of the state");
  if (share == 0) return {{0, 0, numbers}};
  const int64_t rest = replicas * share;
  return {{replica * share, 0, share}, {rest, share, numbers - rest}};
}

BucketPlan plan_buckets(const std::vector<int64_t>& layer_begins, int64_t numbers, int64_t share,
                        int replicas) {
  BucketPlan plan;
  const int64_t shared = replicas * share;
  const auto owner_of = [&](int64_t number) {
    return number < shared ? static_cast<int>(number / share) : -1;
  };
  int64_t end = numbers;
  const auto add_down_to = [&](int64_t begin) {
    while (end > begin) {
      const int owner = owner_of(end - 1);
      int64_t from = std::max(begin, end - bucket_elements);
      if (owner >= 0) {
        from = std::max(from, owner * share);
      } else if (share > 0) {
        from = std::max(from, shared);
      }
      plan.buckets.push_back({from, end, owner});
      end = from;
    }
  };
  plan.from_layer_on.resize(layer_begins.size());
  for (size_t layer = layer_begins.size(); layer-- > 0;) {
    // Small layers go together.
    if (end - layer_begins[layer] >= bucket_elements || layer == 0) add_down_to(layer_begins[layer]);
    plan.from_layer_on[layer] = plan.buckets.size();
  }
  add_down_to(0);
  return plan;
}

}  // namespace sl
