#include "lengthen/progress.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace sl {
namespace {

constexpr double terminal_interval = 0.5, plain_interval = 10.0;  // seconds

std::string as_time(double seconds) {
  const auto whole = static_cast<int64_t>(seconds);
  if (whole >= 3600) return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
  return fmt::format("{}m{:02}s", whole / 60, whole % 60);
}

}  // namespace

Progress::Progress(bool enabled, int replicas)
    : enabled_(enabled), terminal_(isatty(STDERR_FILENO) != 0), replicas_(replicas), last_(Clock::now()) {}

bool Progress::due(const std::string& stage) {
  if (!enabled_) return false;
  const Clock::time_point now = Clock::now();
  const bool fresh = stage != stage_;
  if (fresh) {
    finish();
    stage_ = stage;
    stage_begin_ = now;
    words_ = responses_ = 0;
  }
  const std::chrono::duration<double> since = now - last_;
  return since.count() >= (terminal_ ? terminal_interval : plain_interval);
}

void Progress::show(const std::string& line) {
  last_ = Clock::now();
  if (terminal_) {
    fmt::print(stderr, "\r\x1b[K{}", line);
    line_open_ = true;
  } else {
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
}

void Progress::update(const ProgressState& state) {
  const std::string stage =
      state.iteration > 0 ? fmt::format("{} {} {}", state.part, state.iteration, state.stage) : state.stage;
  const bool fresh = stage != stage_;
  const Clock::time_point before = last_;
  if (!due(stage)) {
    if (fresh && enabled_) {
      done_at_begin_ = state.done;
      tokens_at_last_ = state.engine.generated_tokens;
    }
    return;
  }
  if (fresh) {
    done_at_begin_ = state.done;
    tokens_at_last_ = state.engine.generated_tokens;
  }
  const Clock::time_point now = Clock::now();
  const double since = std::chrono::duration<double>(now - before).count();
  const double rate = static_cast<double>(state.engine.generated_tokens - tokens_at_last_) /
                      std::max(since, 1e-9) * replicas_;
  tokens_at_last_ = state.engine.generated_tokens;
  const double elapsed = std::chrono::duration<double>(now - stage_begin_).count();
  const int64_t gained = state.done - done_at_begin_;
  const std::string left =
      gained > 0
          ? as_time(elapsed / static_cast<double>(gained) * static_cast<double>(state.total - state.done))
          : "?";
  const std::string words = responses_ > 0 ? fmt::format(", {} words on average", words_ / responses_) : "";
  show(fmt::format("{}: {}/{} samples, {:.0f} tokens/s, {} running, pages {}/{}{}, {} left", stage,
                   state.done, state.total, rate, state.engine.running, state.engine.pages_used,
                   state.engine.pages_total, words, left));
}

void Progress::update_training(const std::string& role, int64_t iteration, int64_t step, int64_t steps,
                               double loss, double tokens_per_second) {
  if (!due(fmt::format("iteration {} training {}", iteration, role))) return;
  const double elapsed = std::chrono::duration<double>(Clock::now() - stage_begin_).count();
  show(fmt::format("{}: step {}/{}, loss {:.4f}, {:.0f} tokens/s, {} left", stage_, step, steps, loss,
                   tokens_per_second,
                   as_time(elapsed / static_cast<double>(std::max<int64_t>(step, 1)) *
                           static_cast<double>(steps - step))));
}

void Progress::add_words(int64_t words) {
  words_ += words;
  ++responses_;
}

void Progress::finish() {
  if (line_open_) fmt::print(stderr, "\n");
  line_open_ = false;
}

}  // namespace sl
