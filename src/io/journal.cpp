#include "io/journal.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>

#include "core/error.hpp"
#include "core/json_depth.hpp"
#include "io/checksum.hpp"
#include "io/durable.hpp"
#include "io/json_lines.hpp"

namespace sl {
namespace {

// The record of a line, or a discarded value when the line is damaged.
nlohmann::json parse_line(std::string_view line) {
  constexpr size_t digits = 8;
  uint32_t expected = 0;
  if (line.size() <= digits || line[digits] != ' ') return nlohmann::json::value_t::discarded;
  const auto [end, error] = std::from_chars(line.data(), line.data() + digits, expected, 16);
  const std::string_view text = line.substr(digits + 1);
  if (error != std::errc() || end != line.data() + digits || checksum(text) != expected ||
      nests_too_deep(text)) {
    return nlohmann::json::value_t::discarded;
  }
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

}  // namespace

Journal::Journal(const std::string& path) : path_(path), last_sync_(std::chrono::steady_clock::now()) {
  file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file_ < 0) throw SystemError("open", path, errno);
  try {
    size_ = cut_torn_line(file_, path);
  } catch (...) {
    ::close(file_);
    throw;
  }
  sync_folder_of(path);
}

Journal::~Journal() { ::close(file_); }

void Journal::append(const nlohmann::json& record) {
  const std::string text = to_line(record);
  const std::string line = fmt::format("{:08x} {}\n", checksum(text), text);
  unsynced_ = true;
  try {
    write_all(file_, line.data(), line.size(), path_);
  } catch (...) {
    // The caller may free space and go on: half a line must not spoil the next. If the cut fails too, the
    // checksum finds that line.
    [[maybe_unused]] const int cut = ::ftruncate(file_, size_);
    throw;
  }
  size_ += static_cast<int64_t>(line.size());
}

void Journal::sync() {
  if (unsynced_ && ::fsync(file_) != 0) throw SystemError("fsync", path_, errno);
  unsynced_ = false;
  last_sync_ = std::chrono::steady_clock::now();
}

void Journal::sync_if_due(double seconds) {
  const std::chrono::duration<double> since = std::chrono::steady_clock::now() - last_sync_;
  if (unsynced_ && since.count() >= seconds) sync();
}

JournalContent read_journal(const std::string& path) {
  JournalContent content;
  const std::string bytes = read_if_there(path).value_or("");
  std::string_view rest = bytes;
  int64_t line = 1;
  for (size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n'), ++line) {
    nlohmann::json record = parse_line(rest.substr(0, end));
    rest.remove_prefix(end + 1);
    if (record.is_object()) {
      content.records.push_back(std::move(record));
    } else {
      if (content.damaged++ == 0) content.first_damaged_line = line;
    }
  }
  return content;
}

}  // namespace sl
