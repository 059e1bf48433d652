// Watches over a job, on every rank: one that stalls while the others wait for it would hold all its nodes
// until their time is over.
//
// A thread beside the one that works, which never calls MPI (MPI_THREAD_FUNNELED). Every rank writes what it
// is doing into its own page of one small file of the run folder, twenty times a timeout but at most once a
// minute, and reads all the pages. The file is the only channel that still works when a rank is stopped and
// the others are inside a collective, and it reaches other nodes. A rank that cannot write it for so long is
// one that hangs; while a rank cannot read it, time stands still there.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "dist/stall.hpp"

namespace sl {

class Watchdog {
 public:
  // Makes the file of so many ranks; by one of them, before any watches. SystemError when it cannot.
  static void prepare(const std::string& path, int ranks);

  // `stalled` is called once, on the watching thread, with the line to say; it ends the process. It must not
  // call MPI.
  Watchdog(std::string path, int rank, int ranks, double timeout,
           std::function<void(const std::string&)> stalled, Activity& whose = activity());
  // In order: the other ranks no longer expect anything of this one, and rank 0 takes the file away. When an
  // exception drives it out, they do.
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void watch(const std::stop_token& end);
  bool write(const Beat& beat) const;
  bool read(std::vector<std::optional<Beat>>& beats) const;

  std::string path_;
  int rank_, ranks_;
  StallJudge judge_;
  std::function<void(const std::string&)> stalled_;
  Activity& activity_;
  int64_t beats_ = 0;
  std::jthread thread_;  // last: it uses the others
};

}  // namespace sl
