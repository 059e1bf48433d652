#include "dist/stall.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <sstream>

namespace sl {
namespace {

std::string names_of(const std::vector<int>& ranks) {
  constexpr size_t most = 8;
  const std::vector<int> first(ranks.begin(),
                               ranks.begin() + static_cast<int64_t>(std::min(ranks.size(), most)));
  return fmt::format("rank{} {}{}", ranks.size() > 1 ? "s" : "", fmt::join(first, ", "),
                     ranks.size() > most ? fmt::format(" and {} more", ranks.size() - most) : "");
}

}  // namespace

Beat Beat::of(const Activity::State& state, int64_t alive) {
  Beat beat{.alive = alive, .progress = state.progress, .where = {}, .waits = state.call != nullptr};
  if (beat.waits) beat.where = fmt::format("in {} of {}, ", state.call, state.among);
  beat.where += fmt::format("stage '{}'", state.stage);
  if (state.iteration > 0) beat.where += fmt::format(" of {} {}", state.part, state.iteration);
  return beat;
}

std::string Beat::to_line() const {
  return fmt::format("{} {} {:d} {:d} {}\n", alive, progress, left, waits, where);
}

std::optional<Beat> Beat::from_line(const std::string& line) {
  std::istringstream words(line);
  Beat beat;
  if (!(words >> beat.alive >> beat.progress >> beat.left >> beat.waits)) return std::nullopt;
  std::getline(words >> std::ws, beat.where);
  return beat;
}

StallJudge::StallJudge(int rank, int ranks, double timeout)
    : rank_(rank), timeout_(timeout), seen_(static_cast<size_t>(ranks)) {}

double StallJudge::interval() const { return std::clamp(timeout_ / 20.0, 0.01, 60.0); }

void StallJudge::note(const std::vector<std::optional<Beat>>& beats) {
  for (size_t rank = 0; rank < seen_.size(); ++rank) {
    if (!beats[rank]) continue;
    Seen& seen = seen_[rank];
    const Beat& beat = *beats[rank];
    if (beat.alive != seen.beat.alive) seen.alive_at = clock_;
    if (beat.progress != seen.beat.progress) seen.progress_at = clock_;
    seen.beat = beat;
  }
}

std::optional<std::string> StallJudge::look(const std::vector<std::optional<Beat>>& beats, double seconds) {
  clock_ += std::min(seconds, 2.0 * interval());
  note(beats);
  std::vector<int> silent, stuck;
  bool nobody_moves = true;
  int speaker = -1;
  for (size_t i = 0; i < seen_.size(); ++i) {
    const Seen& seen = seen_[i];
    if (seen.beat.left) continue;
    const auto rank = static_cast<int>(i);
    const bool moves = clock_ - seen.progress_at < timeout_;
    nobody_moves = nobody_moves && !moves;
    if (clock_ - seen.alive_at >= timeout_) {
      silent.push_back(rank);
      continue;
    }
    if (!moves && !seen.beat.waits) stuck.push_back(rank);
    if (speaker < 0) speaker = rank;
  }
  if (silent.empty() && stuck.empty() && !nobody_moves) {
    stalled_at_.reset();
    return std::nullopt;
  }
  if (!stalled_at_) stalled_at_ = clock_;
  const double patience = speaker == rank_ ? 0.0 : std::min(timeout_, 10.0);
  if (clock_ - *stalled_at_ < patience) return std::nullopt;
  return describe(silent, stuck);
}

// Ranks by the place they are in: "rank 0 in barrier of all ranks, stage 'extended' of iteration 2".
std::string StallJudge::places_of(const std::vector<int>& ranks) const {
  std::map<std::string, std::vector<int>> by_place;
  for (const int rank : ranks) {
    const Beat& beat = seen_[static_cast<size_t>(rank)].beat;
    by_place[beat.where.empty() ? "nowhere seen yet" : beat.where].push_back(rank);
  }
  std::string text;
  for (const auto& [place, those] : by_place)
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", names_of(those), place);
  return text;
}

std::string StallJudge::describe(const std::vector<int>& silent, const std::vector<int>& stuck) const {
  std::vector<int> waiting;
  for (size_t i = 0; i < seen_.size(); ++i) {
    const auto rank = static_cast<int>(i);
    const bool culprit = std::find(silent.begin(), silent.end(), rank) != silent.end();
    if (seen_[i].beat.waits && !seen_[i].beat.left && !culprit) waiting.push_back(rank);
  }
  std::string what;
  if (!silent.empty()) {
    what = fmt::format("no sign of life for {:.0f} s (stopped, or its machine is lost), last seen: {}",
                       timeout_, places_of(silent));
  } else if (!stuck.empty()) {
    what = fmt::format("no progress for {:.0f} s, though waiting for nobody: {}", timeout_, places_of(stuck));
  } else {
    what = fmt::format("for {:.0f} s all ranks have waited for each other", timeout_);
  }
  if (!waiting.empty()) what += fmt::format("; waiting: {}", places_of(waiting));
  return fmt::format("the job has stalled: {}; it ends here, and the same command continues it", what);
}

}  // namespace sl
