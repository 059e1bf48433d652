// Which pages of the KV memory are free, and how many sequences use each of the others. Page ids only: the
// memory itself belongs to the model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sl {

class PagePool {
 public:
  explicit PagePool(int64_t pages);

  int64_t pages() const { return static_cast<int64_t>(references_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int32_t references(int32_t page) const { return references_.at(static_cast<size_t>(page)); }
  bool is_free(int32_t page) const { return is_free_.at(static_cast<size_t>(page)); }

  // A free page, now with one reference; free() > 0. A new pool hands out 0, 1, 2, ...
  int32_t take();
  void retain(int32_t page);  // of a page that is not free
  // Gives one reference back and returns how many are left. A page without any is not free before put_back.
  int32_t release(int32_t page);
  void put_back(int32_t page);  // a page without references

  // BugError unless the free list and the counts agree.
  void check() const;

 private:
  std::vector<int32_t> references_;
  std::vector<int32_t> free_;  // the last is handed out next
  std::vector<bool> is_free_;
};

}  // namespace sl
