#include "rollout/page_pool.hpp"

#include "core/error.hpp"

namespace sl {

PagePool::PagePool(int64_t pages)
    : references_(static_cast<size_t>(pages), 0), is_free_(static_cast<size_t>(pages), true) {
  require(pages > 0, "a pool has at least one page");
  for (int64_t page = pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

int32_t PagePool::take() {
  require(!free_.empty(), "no free page");
  const int32_t page = free_.back();
  free_.pop_back();
  is_free_[static_cast<size_t>(page)] = false;
  references_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::retain(int32_t page) {
  require(!is_free(page), "a reference to a free page");
  ++references_[static_cast<size_t>(page)];
}

int32_t PagePool::release(int32_t page) {
  require(references(page) > 0, "a page released more often than retained");
  return --references_[static_cast<size_t>(page)];
}

void PagePool::put_back(int32_t page) {
  require(!is_free(page) && references(page) == 0, "a page put back while it is free or used");
  is_free_[static_cast<size_t>(page)] = true;
  free_.push_back(page);
}

void PagePool::check() const {
  std::vector<bool> listed(references_.size(), false);
  for (const int32_t page : free_) {
    require(!listed[static_cast<size_t>(page)], "a page is in the free list twice");
    listed[static_cast<size_t>(page)] = true;
    require(references(page) == 0, "a free page is used");
  }
  require(listed == is_free_, "the free list and the free marks disagree");
  for (const int32_t count : references_) require(count >= 0, "a negative count of references");
}

}  // namespace sl
