// The folder of a run (doc/files.md): names of its files, its state, its lock, its metrics.
//
//   run.json                    resolved configuration, versions, model, state
//   metrics.jsonl               a row for each training step and each finished stage
//   iter_NN/STAGE.h5            finished: instructions, initial, extended, sft_generator, sft_extender
//   iter_NN/journal/STAGE.R.log what replica R has finished of a stage that runs
//   iter_NN/ROLE/               adapters in PEFT's format
//   iter_NN/checkpoint/ROLE.h5  training under way
//   collected/                  the collection: a folder of the same kind, with batch_NN for iter_NN, and
//                               final.h5 with its journal beside them
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace sl {

enum class RunState : uint8_t { running, stopped, done, failed };
std::string_view state_name(RunState state);

// What the numbered folders of a run are.
enum class RunParts : uint8_t { iterations, batches };

class RunFolder {
 public:
  explicit RunFolder(std::string path, RunParts parts = RunParts::iterations)
      : path_(std::move(path)), parts_(parts) {}

  // That of the collection of this run.
  RunFolder collected() const { return RunFolder(path_ + "/collected", RunParts::batches); }
  // "iteration" or "batch", for messages and metrics.
  const char* part() const { return parts_ == RunParts::iterations ? "iteration" : "batch"; }

  const std::string& path() const { return path_; }
  std::string run_json() const { return path_ + "/run.json"; }
  std::string beats() const { return path_ + "/.beats"; }
  std::string metrics() const { return path_ + "/metrics.jsonl"; }
  // "iteration 2: ", for messages; nothing for what belongs to no part.
  std::string label(int64_t number) const;
  std::string iteration(int64_t number) const;  // 0: the run folder itself
  std::string stage_file(int64_t iteration_number, const std::string& stage) const;
  std::string journal(int64_t iteration_number, const std::string& stage, int replica) const;
  std::string adapter(int64_t iteration_number, const std::string& role) const;
  std::string checkpoint(int64_t iteration_number, const std::string& role) const;

  // Makes the folders of an iteration. SystemError when that fails.
  void create_iteration(int64_t number) const;
  // All records of all replicas' journals of a stage; warns of damaged ones, whose samples are run again.
  std::vector<nlohmann::json> read_journals(int64_t iteration_number, const std::string& stage) const;
  void remove_journals(int64_t iteration_number, const std::string& stage) const;

  // run.json, or nothing when there is none. InputError when it is damaged.
  nlohmann::json read_run() const;
  void write_run(const nlohmann::json& content) const;  // atomically
  void set_state(RunState state, const std::string& why) const;

  // Appends one row to metrics.jsonl, with its checksum.
  void append_metrics(const nlohmann::json& row) const;

 private:
  std::vector<std::string> journals_of(int64_t iteration_number, const std::string& stage) const;
  std::string path_;
  RunParts parts_;
};

// Held by one process of a run while it works; makes the folder when there is none. InputError when another
// run holds it, or when no folder can be there.
class RunLock {
 public:
  explicit RunLock(const RunFolder& folder);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int file_ = -1;
};

}  // namespace sl
