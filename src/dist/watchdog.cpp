#include "dist/watchdog.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <utility>

#include "core/error.hpp"
#include "core/thread.hpp"

namespace sl {
namespace {

// A page each: clients of a network file system write whole pages back, and must not undo each other's.
constexpr size_t page = 4096;

class OpenFile {
 public:
  OpenFile(const std::string& path, int flags) : file_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~OpenFile() {
    if (file_ >= 0) ::close(file_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  int raw() const { return file_; }

 private:
  int file_;
};

std::string padded(std::string text) {
  text.resize(page, ' ');
  return text;
}

}  // namespace

void Watchdog::prepare(const std::string& path, int ranks) {
  const OpenFile file(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (file.raw() < 0) throw SystemError("open", path, errno);
  // In full: later a full disk must not keep a rank from giving a sign of life.
  const std::string empty = padded("\n");
  for (int rank = 0; rank < ranks; ++rank) {
    if (::write(file.raw(), empty.data(), page) != static_cast<ssize_t>(page))
      throw SystemError("write", path, errno);
  }
}

Watchdog::Watchdog(std::string path, int rank, int ranks, double timeout,
                   std::function<void(const std::string&)> stalled, Activity& whose)
    : path_(std::move(path)),
      rank_(rank),
      ranks_(ranks),
      judge_(rank, ranks, timeout),
      stalled_(std::move(stalled)),
      activity_(whose) {
  thread_ = start_thread("watchdog", [this](const std::stop_token& end) { watch(end); });
}

Watchdog::~Watchdog() {
  thread_.request_stop();
  thread_.join();
  if (std::uncaught_exceptions() > 0) return;
  Beat last = Beat::of(activity_.state(), ++beats_);
  last.left = true;
  write(last);
  if (rank_ == 0) ::unlink(path_.c_str());
}

void Watchdog::watch(const std::stop_token& end) {
  using Clock = std::chrono::steady_clock;
  std::mutex mutex;
  std::condition_variable_any alarm;
  std::unique_lock lock(mutex);
  Clock::time_point looked = Clock::now();
  std::vector<std::optional<Beat>> beats(static_cast<size_t>(ranks_));
  while (!end.stop_requested()) {
    write(Beat::of(activity_.state(), ++beats_));
    if (read(beats)) {
      const Clock::time_point now = Clock::now();
      const auto line = judge_.look(beats, std::chrono::duration<double>(now - looked).count());
      looked = now;
      if (line) return stalled_(*line);
    }
    alarm.wait_for(lock, end, std::chrono::duration<double>(judge_.interval()), [] { return false; });
  }
}

// Opened and closed each time: that is what makes network file systems show it to others.
bool Watchdog::write(const Beat& beat) const {
  const OpenFile file(path_, O_WRONLY);
  const std::string text = padded(beat.to_line());
  return file.raw() >= 0 && ::pwrite(file.raw(), text.data(), page, static_cast<off_t>(page) * rank_) ==
                                static_cast<ssize_t>(page);
}

bool Watchdog::read(std::vector<std::optional<Beat>>& beats) const {
  const OpenFile file(path_, O_RDONLY);
  if (file.raw() < 0) return false;
  std::string text(page, '\0');
  for (int rank = 0; rank < ranks_; ++rank) {
    const ssize_t got = ::pread(file.raw(), text.data(), page, static_cast<off_t>(page) * rank);
    if (got != static_cast<ssize_t>(page)) return false;
    beats[static_cast<size_t>(rank)] = Beat::from_line(text.substr(0, text.find('\n')));
  }
  return true;
}

}  // namespace sl
