// One stage of an iteration over its samples: hands them out among the replicas, runs each as a coroutine on
// the engine, journals what is finished, cuts the stragglers off, and gives every rank all finished records.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lengthen/sample.hpp"

namespace sl {

struct StageSpec {
  int64_t iteration = 1;
  StageId id = StageId::initial;
  int64_t first_sample = 0;  // samples first_sample .. last_sample - 1
  int64_t last_sample = 0;
  // Makes the coroutine of one sample; called once a sample, on the replica that runs it.
  std::function<Task<nlohmann::json>(Sample&)> flow;
};

// Counts over the samples of a stage.
struct StageReport {
  int64_t samples = 0, accepted = 0, given_up = 0, abandoned = 0;
  int64_t attempts = 0, tokens = 0;
  std::map<std::string, int64_t> rejected;  // by rule
  nlohmann::json to_json() const;
  StageReport& operator+=(const StageReport& other);
};

// What each replica did in the starts of a stage that were not interrupted.
struct ReplicaFigures {
  double busy_seconds = 0.0;                         // until it had nothing left, or the stage was over
  int64_t samples = 0;                               // finished by it
  int64_t tokens = 0, prompt_tokens = 0, steps = 0;  // of its engine; prompt tokens: those it computed
};

struct StageResult {
  std::vector<nlohmann::json> accepted;  // by sample number
  StageReport report;
  int64_t tokens_before = 0;  // of report.tokens: made by earlier starts of the run, found in journals
  double seconds = 0.0;       // until the last replica was done
  std::vector<ReplicaFigures> replicas;
  void add(StageResult later);  // of the same stage, later samples
  // seconds, and a list over the replicas of each of their figures: for the metrics.
  nlohmann::json replicas_to_json() const;
};

// Collective over the world. Continues from the journals that a killed run left. Throws Stopped on every rank
// when a signal asked for it; what was finished is in the journals then.
StageResult run_stage(Session& session, Engine& engine, const StageSpec& spec);

// Samples after which a stage is over when a share `cut` of them is enough.
int64_t samples_needed(int64_t samples, double cut);

// Which of the finished records count when a share `cut` of `samples` is enough: the cheapest by tokens
// generated, lower sample first among equals. The records that stay, by sample number. Whatever order they
// were finished in, the same ones stay: the cut of --deterministic.
std::vector<nlohmann::json> cut_costliest(std::vector<nlohmann::json> records, int64_t samples, double cut);

}  // namespace sl
