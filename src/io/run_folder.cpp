#include "io/run_folder.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <optional>

#include "core/error.hpp"
#include "core/json_depth.hpp"
#include "core/log.hpp"
#include "io/checksum.hpp"
#include "io/durable.hpp"
#include "io/journal.hpp"
#include "io/json_lines.hpp"

namespace sl {

namespace fs = std::filesystem;

std::string_view state_name(RunState state) {
  switch (state) {
    case RunState::running:
      return "running";
    case RunState::stopped:
      return "stopped";
    case RunState::done:
      return "done";
    case RunState::failed:
      return "failed";
  }
  throw BugError("unknown state of a run");
}

std::string RunFolder::label(int64_t number) const {
  return number == 0 ? "" : fmt::format("{} {}: ", part(), number);
}

std::string RunFolder::iteration(int64_t number) const {
  if (number == 0) return path_;
  return fmt::format("{}/{}_{:02}", path_, parts_ == RunParts::iterations ? "iter" : "batch", number);
}

std::string RunFolder::stage_file(int64_t iteration_number, const std::string& stage) const {
  return fmt::format("{}/{}.h5", iteration(iteration_number), stage);
}

std::string RunFolder::journal(int64_t iteration_number, const std::string& stage, int replica) const {
  return fmt::format("{}/journal/{}.{:05}.log", iteration(iteration_number), stage, replica);
}

std::string RunFolder::adapter(int64_t iteration_number, const std::string& role) const {
  return iteration(iteration_number) + "/" + role;
}

std::string RunFolder::checkpoint(int64_t iteration_number, const std::string& role) const {
  return fmt::format("{}/checkpoint/{}.h5", iteration(iteration_number), role);
}

void RunFolder::create_iteration(int64_t number) const {
  std::vector<std::string> folders = {"journal"};
  if (parts_ == RunParts::iterations) folders.emplace_back("checkpoint");  // nothing is trained in a batch
  for (const std::string& name : folders) {
    std::error_code error;
    const std::string folder = iteration(number) + "/" + name;
    fs::create_directories(folder, error);
    if (error) throw SystemError("mkdir", folder, error.value());
  }
}

std::vector<std::string> RunFolder::journals_of(int64_t iteration_number, const std::string& stage) const {
  std::vector<std::string> paths;
  const fs::path folder = iteration(iteration_number) + "/journal";
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(stage + ".") && name.ends_with(".log")) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());  // the order in which a folder lists is nobody's promise
  return paths;
}

std::vector<nlohmann::json> RunFolder::read_journals(int64_t iteration_number,
                                                     const std::string& stage) const {
  std::vector<nlohmann::json> records;
  for (const std::string& path : journals_of(iteration_number, stage)) {
    JournalContent content = read_journal(path);
    if (content.damaged > 0) {
      spdlog::warn("{}: {} damaged records, the first in line {}; their samples are run again", path,
                   content.damaged, content.first_damaged_line);
    }
    std::move(content.records.begin(), content.records.end(), std::back_inserter(records));
  }
  return records;
}

void RunFolder::remove_journals(int64_t iteration_number, const std::string& stage) const {
  for (const std::string& path : journals_of(iteration_number, stage)) fs::remove(path);
}

nlohmann::json RunFolder::read_run() const {
  const std::optional<std::string> text = read_if_there(run_json());
  if (!text) return nullptr;
  nlohmann::json content = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!content.is_object() || nests_too_deep(*text) || seal_of(content) == Seal::broken) {
    throw InputError(
        "is damaged", run_json(),
        "remove it, and give the same command on as many ranks: what is finished is taken as it is");
  }
  content.erase("crc32");
  return content;
}

void RunFolder::write_run(const nlohmann::json& content) const {
  write_atomically(run_json(),
                   sealed(content).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

void RunFolder::set_state(RunState state, const std::string& why) const {
  nlohmann::json content = read_run();
  if (content.is_null()) return;  // nothing has begun here
  content["state"] = state_name(state);
  content["why"] = why;
  write_run(content);
}

void RunFolder::append_metrics(const nlohmann::json& row) const {
  const int file = ::open(metrics().c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0) throw SystemError("open", metrics(), errno);
  const std::string line = to_line(sealed(row)) + "\n";
  try {
    cut_torn_line(file, metrics());
    write_all(file, line.data(), line.size(), metrics());
  } catch (...) {
    ::close(file);
    throw;
  }
  ::close(file);
}

RunLock::RunLock(const RunFolder& folder) {
  std::error_code error;
  fs::create_directories(folder.path(), error);
  if (!fs::is_directory(folder.path(), error)) {
    throw InputError("cannot be made a folder", folder.path(), "choose another folder");
  }
  const std::string path = folder.path() + "/.lock";
  file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (file_ < 0) throw SystemError("open", path, errno);
  if (::flock(file_, LOCK_EX | LOCK_NB) == 0) return;
  if (errno == EWOULDBLOCK) {
    ::close(file_);
    throw InputError("is in use by another run", folder.path(),
                     "wait for it, stop it, or choose another --out");
  }
  spdlog::warn("{}: this file system has no locks ({}); see to it that no other run uses the folder", path,
               std::strerror(errno));
}

RunLock::~RunLock() { ::close(file_); }  // the lock goes with the descriptor, also when the process is killed

}  // namespace sl
