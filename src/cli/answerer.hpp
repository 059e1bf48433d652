// A model that answers the rows of a command, on all ranks: weights and adapter, an engine for them, and the
// rows shared out over the replicas.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/launch.hpp"
#include "rollout/engine.hpp"
#include "rollout/flow.hpp"
#include "rollout/model_step.hpp"

namespace sl {

// A model to be asked, with the adapter of `choice`, if any, as adapter 0 of requests; those of adapter -1
// ask the model without it. It is only opened until an Answerer needs it, and stays in memory for further
// ones.
class AnsweringModel {
 public:
  explicit AnsweringModel(const ModelChoice& choice);

  // Not to be kept over load().
  const ModelSource& source() const { return loaded_ ? loaded_->source() : source_; }
  // Reads the weights unless they are there. Collective over all ranks.
  const LoadedModel& load(Ranks& ranks);
  const std::optional<Adapter>& adapter() const { return adapter_; }

 private:
  ModelChoice choice_;
  ModelSource source_;  // until it is loaded
  std::unique_ptr<LoadedModel> loaded_;
  std::optional<Adapter> adapter_;
};

class Answerer {
 public:
  // Loads the model, which must outlive this, if need be. Sequences hold `longest` tokens at most. Collective
  // over all ranks, as all here.
  Answerer(AnsweringModel& model, const EngineChoice& engine, Ranks& ranks, int64_t longest);

  Engine& engine() { return engine_; }

  // What is done with a row; its record is an object.
  using Flow = std::function<Task<nlohmann::json>(int64_t row)>;
  // Hears a record when it is there, on the rank that speaks for the replica.
  using Finished = std::function<void(int64_t row, const nlohmann::json& record)>;

  // Runs the flow of each of `rows` (the same on every rank), as many at a time as the engine holds, on the
  // replica that takes it first. The records by row on rank 0; elsewhere nothing. `what` names the work in
  // the progress line, and in the line on its speed.
  std::map<int64_t, nlohmann::json> answer(const std::string& what, const std::vector<int64_t>& rows,
                                           const Flow& flow, const Finished& finished = {});

 private:
  std::map<int64_t, nlohmann::json> take_rows(const std::string& what, const std::vector<int64_t>& rows,
                                              const Flow& flow, const Finished& finished);
  std::map<int64_t, nlohmann::json> gather(const std::map<int64_t, nlohmann::json>& own);
  void report_speed(const EngineStatistics& before, size_t rows, double seconds);

  Ranks& ranks_;
  EngineLimits limits_;
  EngineOptions options_;
  ModelStep step_;
  Engine engine_;
};

// The longest sequence that these requests may become on a model.
int64_t longest_sequence(const std::vector<Request>& requests, const ModelConfig& config);

// InputError, naming `where`, for a prompt that is empty or fills the model's positions.
void check_prompt(const std::vector<int32_t>& tokens, const ModelConfig& config, const std::string& where);

}  // namespace sl
