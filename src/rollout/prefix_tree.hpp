// The tree of full pages, so that sequences which begin alike share the pages of what they share. A page
// hangs under the page before it (or under the root of its adapter) by the tokens it holds. Pages that no
// sequence uses stay in the tree until their memory is needed; then the least recently used goes first.
//
// Invariant: who references a page of the tree references all pages above it.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "rollout/page_pool.hpp"

namespace sl {

class PrefixTree {
 public:
  PrefixTree(int64_t pages, int64_t tokens_per_page);

  // The place above the first page of a sequence with that adapter (-1: the bare base model).
  static int32_t root(int32_t adapter) { return -2 - adapter; }

  // The page below `parent` (a page of the tree or a root) that holds `tokens`, a full page of them.
  std::optional<int32_t> find(int32_t parent, std::span<const int32_t> tokens) const;
  // Puts a referenced page into the tree; find() gives nothing for that place yet.
  void insert(int32_t parent, std::span<const int32_t> tokens, int32_t page);

  // A page to write to, with one reference: a free one, or the least recently used of the tree that nobody
  // references. available() > 0.
  int32_t take();
  void retain(int32_t page);   // of a page that find() or take() gave
  void release(int32_t page);  // without references it becomes free, or stays in the tree to be found again
  // Pages that take() can give.
  int64_t available() const { return pool_.free() + cached_; }
  // Forgets all pages that nobody references (the weights have changed).
  void clear();

  const PagePool& pool() const { return pool_; }
  int64_t tokens_per_page() const { return tokens_per_page_; }
  bool contains(int32_t page) const { return nodes_[static_cast<size_t>(page)].in_tree; }

  // BugError unless counts, links and the order of eviction agree.
  void check() const;

 private:
  struct Node {
    bool in_tree = false;
    int32_t parent = 0;
    int64_t children = 0;
    int64_t last_use = 0;
    uint64_t key = 0;
    std::vector<int32_t> tokens;
  };
  Node& node(int32_t page) { return nodes_[static_cast<size_t>(page)]; }
  const Node& node(int32_t page) const { return nodes_[static_cast<size_t>(page)]; }
  bool evictable(int32_t page) const;
  void evict_oldest();

  PagePool pool_;
  int64_t tokens_per_page_;
  std::vector<Node> nodes_;                           // by page
  std::unordered_multimap<uint64_t, int32_t> index_;  // hash of parent and tokens -> page
  std::set<std::pair<int64_t, int32_t>> evictable_;   // (last use, page): leaves without references
  int64_t cached_ = 0;                                // pages of the tree without references
  int64_t clock_ = 0;
};

}  // namespace sl
