// The progress line of a run: one line that is rewritten on a terminal, plain lines now and then otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "rollout/engine.hpp"

namespace sl {

struct ProgressState {
  std::string stage;
  int64_t iteration = 0;        // its number; 0: none
  int64_t done = 0, total = 0;  // samples or steps
  EngineStatistics engine;
  const char* part = "iteration";  // what `iteration` counts
};

class Progress {
 public:
  // Writes to standard error when `enabled` (rank 0 only). `replicas` scales this rank's token rate.
  Progress(bool enabled, int replicas);
  void update(const ProgressState& state);
  // For training: loss instead of engine figures.
  void update_training(const std::string& role, int64_t iteration, int64_t step, int64_t steps, double loss,
                       double tokens_per_second);
  void add_words(int64_t words);  // of an accepted response, for the running mean
  void finish();                  // ends the line

 private:
  bool due(const std::string& stage);
  void show(const std::string& line);

  using Clock = std::chrono::steady_clock;
  bool enabled_, terminal_;
  int replicas_;
  std::string stage_;
  Clock::time_point stage_begin_, last_;
  int64_t done_at_begin_ = 0, tokens_at_last_ = 0;
  int64_t words_ = 0, responses_ = 0;
  bool line_open_ = false;
};

}  // namespace sl
