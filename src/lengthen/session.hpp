// What every stage of a run shares: who we are among the ranks, the model, the prompts, the run folder, and
// whether somebody asked us to stop.
#pragma once

#include <atomic>
#include <chrono>
#include <nlohmann/json.hpp>
#include <string>

#include "dist/communicator_mpi.hpp"
#include "dist/work_queue.hpp"
#include "io/run_folder.hpp"
#include "io/table_layout.hpp"
#include "lengthen/options.hpp"
#include "lengthen/progress.hpp"
#include "model/source.hpp"
#include "text/prompts.hpp"

namespace sl {

// Engine adapter of each role; the base model has none.
enum class Role : int8_t { base = -1, generator = 0, extender = 1 };
std::string_view role_name(Role role);

// Set by the signal handler of main: SIGTERM, SIGINT or SIGUSR1 ask for a stop with everything saved.
extern std::atomic<int> stop_signal;

// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// Thrown on every rank at the same point when the run stops at a signal; all finished work is on disk.
struct Stopped {};

struct EngineLimits {
  int64_t tokens_per_page = 16;
  int64_t pages = 0;
  int64_t max_sequences = 64;
  int64_t max_batch_rows = 256;
  int64_t max_positions = 0;  // of a sequence
};

struct Session {
  const MethodOptions& method;
  const EngineLimits& limits;
  LoadedModel& model;
  const Prompts& prompts;
  Groups& groups;
  SharedCounters& counters;
  RunFolder& folder;
  Progress& progress;
  int64_t first_adapted =
      2;  // iterations from this one on ask the roles' adapters, earlier ones the base model
  TableLayout tables = {};

  int replica() const { return groups.place.replica; }
  bool leader() const { return groups.place.tp_rank == 0; }  // of its replica: the one that writes journals
  bool first() const { return groups.world->rank() == 0; }
  // The same with other options.
  Session with(const MethodOptions& other) const {
    return {other, limits, model, prompts, groups, counters, folder, progress, first_adapted, tables};
  }
  // True on every rank when any rank saw a signal. Collective over the world.
  bool stop_agreed() const;
  // Whether this file is there. Rank 0 looks, for all: a shared file system may show a new file later to
  // others. Collective over the world.
  bool finished(const std::string& path) const;
};

}  // namespace sl
