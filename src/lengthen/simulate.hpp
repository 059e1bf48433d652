// A stage of rollouts on many replicas, on paper: samples are handed out as run_stage does it, each replica
// batches them as the engine does, and a step takes the time that a model says. Gives how long the stage
// takes and how long each replica has nothing to do. What it leaves out: pre-emption when pages run out, and
// the moments that a replica waits for the shared counter.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace sl {

// Seconds of a step of the engine: of(sequences) + per_context_token * tokens that its decoding rows attend
// to + per_prompt_token * prompt tokens.
struct StepTime {
  // (decoding sequences, seconds), ascending; between and behind them along straight lines, before the first
  // as at the first. One point: as long whatever the number.
  std::vector<std::pair<int64_t, double>> points{};
  double per_context_token = 0.0, per_prompt_token = 0.0;
  double of(int64_t sequences) const;
};

// A measured step of `batch` sequences at `context` tokens each.
struct MeasuredStep {
  int64_t batch = 0, context = 0;
  double seconds = 0.0;
};
// The context's part by least squares over batches that were measured at several contexts, the points by
// their mean. InputError, `where` being named, when no batch was.
StepTime fit_step_time(const std::vector<MeasuredStep>& steps, double per_prompt_token,
                       const std::string& where);

// A sample: attempts one after the other, each of so many new tokens. The prompt is read for the first; later
// ones find it in the prefix tree.
struct SimulatedSample {
  int64_t prompt = 1;
  std::vector<int64_t> attempts{};
};

enum class HandOut : uint8_t {
  dynamic,  // samples_to_take of what is left, whenever there is room
  fixed     // share_of: each replica has its own samples from the beginning
};

struct SimulationOptions {
  int replicas = 1;
  int64_t max_sequences = 256, max_batch_rows = 2048;  // of a replica; rows above sequences
  double straggler_cut = 1.0;                          // the stage is over when this share is done
  HandOut hand_out = HandOut::dynamic;
};

struct SimulatedReplica {
  double busy = 0.0;  // seconds until it had nothing left, or the stage was over
  int64_t samples = 0, tokens = 0, steps = 0;
};

struct Simulation {
  std::vector<SimulatedReplica> replicas{};
  int64_t needed = 0;  // samples after which the stage was over
  double seconds = 0.0;
  double idle_share(int replica) const;
  double mean_idle_share() const;
  double samples_per_second() const;  // of those that were needed
};

Simulation simulate_stage(const std::vector<SimulatedSample>& samples, const StepTime& time,
                          const SimulationOptions& options);

}  // namespace sl
