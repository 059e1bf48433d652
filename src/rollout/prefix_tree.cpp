#include "rollout/prefix_tree.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace sl {
namespace {

// FNV-1a over the numbers; entries that collide are told apart by comparing what they hold.
uint64_t key_of(int32_t parent, std::span<const int32_t> tokens) {
  uint64_t hash = 0xCBF29CE484222325ULL;
  const auto add = [&](int32_t value) {
    hash = (hash ^ static_cast<uint32_t>(value)) * 0x100000001B3ULL;
    hash ^= hash >> 32;
  };
  add(parent);
  for (const int32_t token : tokens) add(token);
  return hash;
}

}  // namespace

PrefixTree::PrefixTree(int64_t pages, int64_t tokens_per_page)
    : pool_(pages), tokens_per_page_(tokens_per_page), nodes_(static_cast<size_t>(pages)) {
  require(tokens_per_page > 0, "a page holds at least one token");
}

std::optional<int32_t> PrefixTree::find(int32_t parent, std::span<const int32_t> tokens) const {
  const auto [first, last] = index_.equal_range(key_of(parent, tokens));
  const auto found = std::find_if(first, last, [&](const auto& entry) {
    const Node& candidate = node(entry.second);
    return candidate.parent == parent && std::ranges::equal(candidate.tokens, tokens);
  });
  if (found == last) return std::nullopt;
  return found->second;
}

void PrefixTree::insert(int32_t parent, std::span<const int32_t> tokens, int32_t page) {
  require(static_cast<int64_t>(tokens.size()) == tokens_per_page_, "only full pages are shared");
  require(pool_.references(page) > 0 && !contains(page), "a page enters the tree once, and in use");
  require(parent < 0 || contains(parent), "a page enters the tree below a page that is not in it");
  Node& entry = node(page);
  entry.in_tree = true;
  entry.parent = parent;
  entry.children = 0;
  entry.key = key_of(parent, tokens);
  entry.tokens.assign(tokens.begin(), tokens.end());
  index_.emplace(entry.key, page);
  if (parent >= 0) ++node(parent).children;
}

int32_t PrefixTree::take() {
  if (pool_.free() == 0) evict_oldest();
  return pool_.take();
}

void PrefixTree::retain(int32_t page) {
  if (pool_.references(page) == 0) {
    evictable_.erase({node(page).last_use, page});
    --cached_;
  }
  pool_.retain(page);
}

void PrefixTree::release(int32_t page) {
  if (pool_.release(page) > 0) return;
  if (!contains(page)) {
    pool_.put_back(page);
    return;
  }
  node(page).last_use = ++clock_;
  ++cached_;
  if (evictable(page)) evictable_.emplace(node(page).last_use, page);
}

bool PrefixTree::evictable(int32_t page) const {
  return contains(page) && pool_.references(page) == 0 && node(page).children == 0;
}

void PrefixTree::evict_oldest() {
  require(!evictable_.empty(), "no page left to give up");
  const int32_t page = evictable_.begin()->second;
  evictable_.erase(evictable_.begin());
  Node& entry = node(page);
  const auto [first, last] = index_.equal_range(entry.key);
  index_.erase(std::find_if(first, last, [&](const auto& item) { return item.second == page; }));
  entry.in_tree = false;
  --cached_;
  pool_.put_back(page);
  const int32_t parent = entry.parent;
  if (parent < 0) return;
  --node(parent).children;
  if (evictable(parent)) evictable_.emplace(node(parent).last_use, parent);
}

void PrefixTree::clear() {
  while (!evictable_.empty()) evict_oldest();
}

void PrefixTree::check() const {
  pool_.check();
  std::vector<int64_t> children(nodes_.size(), 0);
  int64_t in_tree = 0;
  int64_t cached = 0;
  for (int32_t page = 0; page < pool_.pages(); ++page) {
    const Node& entry = node(page);
    require(!(entry.in_tree && pool_.is_free(page)), "a page of the tree is free");
    require(entry.in_tree || pool_.is_free(page) || pool_.references(page) > 0, "a page is lost");
    require(evictable(page) == evictable_.contains({entry.last_use, page}), "the order of eviction is wrong");
    if (!entry.in_tree) continue;
    ++in_tree;
    if (pool_.references(page) == 0) ++cached;
    require(find(entry.parent, entry.tokens) == page, "a page of the tree is not found");
    if (entry.parent < 0) continue;
    require(contains(entry.parent), "a page hangs below one that left the tree");
    require(pool_.references(entry.parent) >= (pool_.references(page) > 0 ? 1 : 0),
            "a page is used and the one above it is not");
    ++children[static_cast<size_t>(entry.parent)];
  }
  for (int32_t page = 0; page < pool_.pages(); ++page) {
    require(!contains(page) || node(page).children == children[static_cast<size_t>(page)],
            "a count of children is wrong");
  }
  require(static_cast<int64_t>(index_.size()) == in_tree, "the index holds more than the tree");
  require(cached == cached_, "the count of cached pages is wrong");
}

}  // namespace sl
