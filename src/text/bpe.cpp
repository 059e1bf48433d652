#include "text/bpe.hpp"

#include <queue>
#include <tuple>

namespace sl {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32U | static_cast<uint32_t>(right);
}

// A token of the word in its linked list; merging keeps the left one and unlinks the right one.
struct Node {
  int32_t id = 0;
  int32_t previous = -1;
  int32_t next = -1;
  bool alive = true;
};

struct Candidate {
  int32_t rank = 0;
  int32_t position = 0;  // of the left node
  int32_t left = 0;      // ids when it was queued: a candidate whose nodes have changed since is stale
  int32_t right = 0;
  int32_t merged = 0;

  bool operator>(const Candidate& other) const {
    return std::tie(rank, position) > std::tie(other.rank, other.position);
  }
};

}  // namespace

Bpe::Bpe(const std::vector<std::string>& tokens, const std::vector<Merge>& merges, bool whole_words_first,
         std::optional<int32_t> unknown)
    : unknown_(unknown) {
  byte_tokens_.fill(-1);
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].size() == 1) {
      byte_tokens_[static_cast<unsigned char>(tokens[id][0])] = static_cast<int32_t>(id);
    }
    if (whole_words_first && !tokens[id].empty()) words_.emplace(tokens[id], static_cast<int32_t>(id));
  }
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    merges_.insert_or_assign(pair_key(merge.left, merge.right),
                             Result{static_cast<int32_t>(rank), merge.merged});
  }
}

const Bpe::Result* Bpe::find(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& out) const {
  if (!words_.empty()) {
    if (const auto whole = words_.find(std::string(word)); whole != words_.end()) {
      out.push_back(whole->second);
      return;
    }
  }
  std::vector<Node> nodes;
  nodes.reserve(word.size());
  for (const char byte : word) {
    int32_t id = byte_tokens_[static_cast<unsigned char>(byte)];
    if (id < 0) {
      if (!unknown_) continue;
      id = *unknown_;
    }
    const auto position = static_cast<int32_t>(nodes.size());
    nodes.push_back({id, position - 1, position + 1, true});
  }
  if (nodes.empty()) return;
  nodes.back().next = -1;

  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto consider = [&](int32_t left) {
    if (left < 0 || nodes[static_cast<size_t>(left)].next < 0) return;
    const Node& node = nodes[static_cast<size_t>(left)];
    const Node& right = nodes[static_cast<size_t>(node.next)];
    if (const Result* merge = find(node.id, right.id)) {
      queue.push({merge->rank, left, node.id, right.id, merge->merged});
    }
  };
  for (int32_t i = 0; i < static_cast<int32_t>(nodes.size()); ++i) consider(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Node& left = nodes[static_cast<size_t>(best.position)];
    if (!left.alive || left.id != best.left || left.next < 0) continue;
    Node& right = nodes[static_cast<size_t>(left.next)];
    if (right.id != best.right) continue;
    left.id = best.merged;
    left.next = right.next;
    right.alive = false;
    if (left.next >= 0) nodes[static_cast<size_t>(left.next)].previous = best.position;
    consider(left.previous);
    consider(best.position);
  }
  for (int32_t i = 0; i >= 0; i = nodes[static_cast<size_t>(i)].next)
    out.push_back(nodes[static_cast<size_t>(i)].id);
}

}  // namespace sl
