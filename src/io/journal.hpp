// The journal of a stage: what is finished, appended at once, so that a run killed at any instant loses
// nothing of it. One record a line: 8 hexadecimal digits of the CRC-32 of the JSON text, a space, the JSON
// text.
#pragma once

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sl {

class Journal {
 public:
  // Opens for appending, creating it when missing; a torn last line (the process died while writing) is cut
  // off.
  explicit Journal(const std::string& path);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  void append(const nlohmann::json& record);  // one write; SystemError when the disk is full
  void sync();                                // to the device
  void sync_if_due(double seconds = 10.0);    // when that long has passed since the last sync

 private:
  std::string path_;
  int file_ = -1;
  int64_t size_ = 0;  // of the whole lines
  bool unsynced_ = false;
  std::chrono::steady_clock::time_point last_sync_;
};

struct JournalContent {
  std::vector<nlohmann::json> records;
  int64_t damaged = 0;             // lines before the last whose checksum is wrong; they are left out
  int64_t first_damaged_line = 0;  // from 1
};

// A torn last line is no damage. An absent file is empty; SystemError when it cannot be read.
JournalContent read_journal(const std::string& path);

}  // namespace sl
