#include "io/durable.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "core/error.hpp"

namespace sl {

void write_all(int file, const void* data, size_t bytes, const std::string& path) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(file, next, bytes);
    if (written < 0) {
      if (errno == EINTR) continue;
      throw SystemError("write", path, errno);
    }
    next += written;
    bytes -= static_cast<size_t>(written);
  }
}

int64_t cut_torn_line(int file, const std::string& path) {
  struct stat status = {};
  if (::fstat(file, &status) != 0) throw SystemError("fstat", path, errno);
  int64_t end = status.st_size;
  std::string block;
  while (end > 0) {
    const int64_t begin = std::max<int64_t>(0, end - (int64_t{1} << 16));
    block.resize(static_cast<size_t>(end - begin));
    if (::pread(file, block.data(), block.size(), begin) != end - begin)
      throw SystemError("pread", path, errno);
    const size_t newline = block.rfind('\n');
    end = newline == std::string::npos ? begin : begin + static_cast<int64_t>(newline) + 1;
    if (newline != std::string::npos) break;
  }
  if (end < status.st_size && ::ftruncate(file, end) != 0) throw SystemError("ftruncate", path, errno);
  return end;
}

std::optional<std::string> read_if_there(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    if (errno == ENOENT) return std::nullopt;
    throw SystemError("open", path, errno);
  }
  std::string content;
  for (size_t filled = 0;;) {
    content.resize(std::max<size_t>(1U << 16, 2 * filled));
    const ssize_t got = ::read(file, content.data() + filled, content.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    const int error = errno;
    if (got <= 0) ::close(file);
    if (got < 0) throw SystemError("read", path, error);
    filled += static_cast<size_t>(got);
    if (got == 0) {
      content.resize(filled);
      return content;
    }
  }
}

void sync_and_close(int file, const std::string& path) {
  const int synced = ::fsync(file);
  const int error = errno;
  const int closed = ::close(file);
  if (synced != 0) throw SystemError("fsync", path, error);
  if (closed != 0) throw SystemError("close", path, errno);
}

void sync_folder_of(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  const int directory = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return;  // a folder we may not read cannot be synced; the name in it stands
  ::fsync(directory);
  ::close(directory);
}

void sync_file(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw SystemError("open", path, errno);
  sync_and_close(file, path);
}

void rename_durably(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) {
    const int error = errno;
    ::unlink(from.c_str());
    throw SystemError("rename", to, error);
  }
  sync_folder_of(to);
}

DurableFile::DurableFile(std::string path) : path_(std::move(path)), temporary_(path_ + ".partial") {
  file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file_ >= 0) return;
  if (errno == ENOENT) throw InputError("its folder does not exist", path_, "create the folder first");
  throw SystemError("open", temporary_, errno);
}

DurableFile::~DurableFile() {
  if (file_ < 0) return;
  ::close(file_);
  ::unlink(temporary_.c_str());
}

void DurableFile::write(const void* data, size_t bytes) { write_all(file_, data, bytes, temporary_); }

// A hint: where the system refuses it, commit() does it all.
void DurableFile::begin_sync() { (void)::sync_file_range(file_, 0, 0, SYNC_FILE_RANGE_WRITE); }

void DurableFile::commit() {
  try {
    sync_and_close(std::exchange(file_, -1), temporary_);
  } catch (...) {
    ::unlink(temporary_.c_str());
    throw;
  }
  rename_durably(temporary_, path_);
}

void write_atomically(const std::string& path, std::string_view text) {
  DurableFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace sl
