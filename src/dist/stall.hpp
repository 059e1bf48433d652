// Whether a job of several ranks has stalled, decided from what every rank says of itself again and again.
// Pure: no clock, no file, no MPI. dist/watchdog.hpp feeds it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/activity.hpp"

namespace sl {

// What a rank says of itself.
struct Beat {
  int64_t alive = 0;     // grows while its process runs
  int64_t progress = 0;  // grows while its work goes on (core/activity.hpp)
  bool left = false;     // it has ended in order
  std::string where;     // stage, and the collective it waits in
  bool waits = false;

  static Beat of(const Activity::State& state, int64_t alive);
  std::string to_line() const;
  static std::optional<Beat> from_line(const std::string& line);  // nothing where none has been written
};

// A rank is stalled when for `timeout` seconds
//   its process gave no sign of life (stopped, killed, its machine lost), or
//   it made no progress though it waits for nobody (a hung file system, a GPU that does not answer, an
//   endless loop).
// A rank that waits in a collective is not: another may work for hours at what it waits for. But when no rank
// at all makes progress, they wait for each other. Time in which this process did not look does not count:
// all ranks may have been suspended together.
class StallJudge {
 public:
  StallJudge(int rank, int ranks, double timeout);

  // What to say once the job has stalled, in one line; nothing before. `beats` by rank, `seconds` since the
  // last look. The lowest rank whose process lives says it at once, the others when it does not.
  std::optional<std::string> look(const std::vector<std::optional<Beat>>& beats, double seconds);

  // Between two looks; those longer than twice that are taken for as long.
  double interval() const;

 private:
  struct Seen {
    Beat beat;
    double alive_at = 0.0, progress_at = 0.0;  // when it last grew, on clock_
  };
  void note(const std::vector<std::optional<Beat>>& beats);
  std::string describe(const std::vector<int>& silent, const std::vector<int>& stuck) const;
  std::string places_of(const std::vector<int>& ranks) const;

  int rank_;
  double timeout_;
  double clock_ = 0.0;  // seconds looked on
  std::optional<double> stalled_at_;
  std::vector<Seen> seen_;
};

}  // namespace sl
