// Files that are whole or not there: write under a temporary name, sync, rename, sync the folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace sl {

// All bytes, or SystemError (a full disk among others).
void write_all(int file, const void* data, size_t bytes, const std::string& path);
// Of a file of lines, open for reading and writing: cuts off a last line that has no end, which a process
// that died while writing has left. Its size after that.
int64_t cut_torn_line(int file, const std::string& path);
// The whole file; nothing when it does not exist, SystemError when it cannot be read.
std::optional<std::string> read_if_there(const std::string& path);
// Closes in any case.
void sync_and_close(int file, const std::string& path);
// A file that is being written under a temporary name, PATH.partial. commit() makes it durable and gives it
// its name; without it nothing is left behind and what was at PATH stays. SystemError when the system
// refuses.
class DurableFile {
 public:
  explicit DurableFile(std::string path);  // InputError when its folder does not exist
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;

  void write(const void* data, size_t bytes);
  // The device may begin with what was written so far: a file as large as memory is not left to commit().
  void begin_sync();
  void commit();

 private:
  std::string path_, temporary_;
  int file_ = -1;
};

// Syncs the folder that `path` is in, so that a new name there survives a crash of the machine.
void sync_folder_of(const std::string& path);
// Syncs a file that is already closed, for instance one that a library wrote.
void sync_file(const std::string& path);
// Renames within a folder and syncs the folder, so that the new name survives a crash of the machine.
void rename_durably(const std::string& from, const std::string& to);
// The whole file at once; on failure the old file is untouched and nothing else is left behind.
void write_atomically(const std::string& path, std::string_view text);

}  // namespace sl
