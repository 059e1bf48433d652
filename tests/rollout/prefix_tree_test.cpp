#include "rollout/prefix_tree.hpp"

#include <gtest/gtest.h>

#include "core/error.hpp"

namespace sl {
namespace {

using Tokens = std::vector<int32_t>;
constexpr int32_t base = -1;

TEST(PagePool, HandsOutInOrderAndTakesBack) {
  PagePool pool(3);
  EXPECT_EQ(pool.take(), 0);
  EXPECT_EQ(pool.take(), 1);
  EXPECT_EQ(pool.free(), 1);
  pool.retain(0);
  EXPECT_EQ(pool.release(0), 1);
  EXPECT_EQ(pool.release(0), 0);
  EXPECT_EQ(pool.free(), 1);  // not before put_back
  pool.put_back(0);
  EXPECT_EQ(pool.free(), 2);
  EXPECT_EQ(pool.take(), 0);
  EXPECT_EQ(pool.take(), 2);
  pool.check();
}

TEST(PagePool, MisuseIsABug) {
  EXPECT_THROW(PagePool(0), BugError);
  PagePool pool(1);
  EXPECT_THROW(pool.retain(0), BugError);
  EXPECT_THROW(pool.release(0), BugError);
  EXPECT_THROW(pool.put_back(0), BugError);
  pool.take();
  EXPECT_THROW(pool.take(), BugError);
  EXPECT_THROW(pool.put_back(0), BugError);
}

TEST(PrefixTree, FindsByParentTokensAndAdapter) {
  PrefixTree tree(4, 2);
  const int32_t first = tree.take();
  tree.insert(PrefixTree::root(base), Tokens{1, 2}, first);
  const int32_t second = tree.take();
  tree.insert(first, Tokens{1, 2}, second);
  EXPECT_EQ(tree.find(PrefixTree::root(base), Tokens{1, 2}), first);
  EXPECT_EQ(tree.find(first, Tokens{1, 2}), second);
  EXPECT_EQ(tree.find(second, Tokens{1, 2}), std::nullopt);
  EXPECT_EQ(tree.find(PrefixTree::root(base), Tokens{2, 1}), std::nullopt);
  EXPECT_EQ(tree.find(PrefixTree::root(0), Tokens{1, 2}), std::nullopt);
  const int32_t other = tree.take();
  tree.insert(PrefixTree::root(0), Tokens{1, 2}, other);
  EXPECT_EQ(tree.find(PrefixTree::root(0), Tokens{1, 2}), other);
  EXPECT_EQ(tree.find(PrefixTree::root(base), Tokens{1, 2}), first);
  tree.check();
}

TEST(PrefixTree, KeepsUnusedPagesUntilMemoryIsNeededAndGivesUpTheOldestLeafFirst) {
  PrefixTree tree(4, 1);
  const auto root = PrefixTree::root(base);
  const int32_t a = tree.take();
  tree.insert(root, Tokens{1}, a);
  const int32_t b = tree.take();
  tree.insert(a, Tokens{2}, b);
  const int32_t c = tree.take();
  tree.insert(root, Tokens{3}, c);
  tree.release(b);
  tree.release(a);
  tree.release(c);
  tree.check();
  EXPECT_EQ(tree.available(), 4);
  EXPECT_EQ(tree.find(a, Tokens{2}), b);

  EXPECT_EQ(tree.take(), 3);  // the free one first
  tree.retain(a);             // used again: neither it nor, now younger, ...
  tree.release(a);
  EXPECT_EQ(tree.take(), b);  // the oldest, a leaf
  EXPECT_EQ(tree.find(a, Tokens{2}), std::nullopt);
  EXPECT_EQ(tree.take(), c);  // a has become a leaf but was used later
  EXPECT_EQ(tree.take(), a);
  EXPECT_EQ(tree.available(), 0);
  EXPECT_THROW(tree.take(), BugError);
  tree.check();
}

TEST(PrefixTree, UsedPagesAreNeverGivenUp) {
  PrefixTree tree(2, 1);
  const auto root = PrefixTree::root(base);
  const int32_t a = tree.take();
  tree.insert(root, Tokens{1}, a);
  const int32_t b = tree.take();
  tree.insert(a, Tokens{2}, b);
  tree.release(b);
  EXPECT_EQ(tree.available(), 1);
  EXPECT_EQ(tree.take(), b);
  EXPECT_EQ(tree.available(), 0);
  EXPECT_EQ(tree.find(root, Tokens{1}), a);
  tree.check();
}

TEST(PrefixTree, PagesOutsideTheTreeBecomeFreeAtOnce) {
  PrefixTree tree(2, 4);
  const int32_t page = tree.take();
  tree.release(page);
  EXPECT_EQ(tree.pool().free(), 2);
  tree.check();
}

TEST(PrefixTree, ClearForgetsWhatNobodyUses) {
  PrefixTree tree(3, 1);
  const auto root = PrefixTree::root(base);
  const int32_t a = tree.take();
  tree.insert(root, Tokens{1}, a);
  const int32_t b = tree.take();
  tree.insert(a, Tokens{2}, b);
  tree.release(b);
  tree.release(a);
  tree.clear();
  EXPECT_EQ(tree.pool().free(), 3);
  EXPECT_EQ(tree.find(root, Tokens{1}), std::nullopt);
  tree.check();
}

TEST(PrefixTree, MisuseIsABug) {
  PrefixTree tree(3, 2);
  const int32_t page = tree.take();
  EXPECT_THROW(tree.insert(PrefixTree::root(base), Tokens{1}, page), BugError);
  EXPECT_THROW(tree.insert(1, Tokens{1, 2}, page), BugError);
  tree.insert(PrefixTree::root(base), Tokens{1, 2}, page);
  EXPECT_THROW(tree.insert(PrefixTree::root(base), Tokens{3, 4}, page), BugError);
}

}  // namespace
}  // namespace sl
