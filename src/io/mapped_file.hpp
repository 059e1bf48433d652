// A file mapped into memory, read-only. Pages are read when touched, so each rank reads only its shard.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sl {

class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // InputError when it cannot be opened or is empty
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace sl
