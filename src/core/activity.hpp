// What the thread that does the work is doing, for a thread that watches it (dist/watchdog.hpp): how much it
// has done, the stage it is in, and the collective it waits in. Noting something costs a few nanoseconds, so
// every collective and every step may do it.
//
// What counts as progress: a step of the engine, a layer of a training pass, a tensor or dataset read or
// written, a collective entered or left. Each takes seconds at most, whatever the model, while a stage may
// take a rank hours in which the others wait for it.
#pragma once

#include <atomic>
#include <cstdint>

namespace sl {

// Written by one thread, read by any. All names are literals: they are read at any time.
class Activity {
 public:
  void progress() {
    progress_.store(progress_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
  // `part`: what `iteration` counts, "iteration" or "batch".
  void stage(const char* name, int64_t iteration = 0, const char* part = "iteration") {
    stage_.store(name, std::memory_order_relaxed);
    part_.store(part, std::memory_order_relaxed);
    iteration_.store(iteration, std::memory_order_relaxed);
    progress();
  }

  struct State {
    int64_t progress = 0;
    const char* stage = "start";
    int64_t iteration = 0;  // 0: outside the iterations
    const char* part = "iteration";
    const char* call = nullptr;   // the collective it waits in, where it does
    const char* among = nullptr;  // between which ranks
  };
  // Of about now: its parts may be a step apart.
  State state() const {
    return {progress_.load(std::memory_order_relaxed),  stage_.load(std::memory_order_relaxed),
            iteration_.load(std::memory_order_relaxed), part_.load(std::memory_order_relaxed),
            call_.load(std::memory_order_relaxed),      among_.load(std::memory_order_relaxed)};
  }

 private:
  friend class Waiting;
  std::atomic<int64_t> progress_{0}, iteration_{0};
  std::atomic<const char*> stage_{"start"}, part_{"iteration"};
  std::atomic<const char*> call_{nullptr}, among_{nullptr};
};

// Of the thread that started MPI.
inline Activity& activity() {
  static Activity one;
  return one;
}

// While it lives, that thread waits for other ranks. Inside another one it takes its place for a time.
class Waiting {
 public:
  Waiting(const char* call, const char* among, Activity& whose = activity())
      : activity_(whose),
        call_(whose.call_.load(std::memory_order_relaxed)),
        among_(whose.among_.load(std::memory_order_relaxed)) {
    enter(call, among);
  }
  ~Waiting() { enter(call_, among_); }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

 private:
  void enter(const char* call, const char* among) {
    activity_.among_.store(among, std::memory_order_relaxed);
    activity_.call_.store(call, std::memory_order_relaxed);
    activity_.progress();
  }
  Activity& activity_;
  const char* call_;
  const char* among_;
};

}  // namespace sl
