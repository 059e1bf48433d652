// The engine of rollouts with the adapters that it serves. It goes, with its pages, when training needs the
// memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lengthen/session.hpp"
#include "rollout/engine.hpp"
#include "rollout/model_step.hpp"

namespace sl {

class Rollouts {
 public:
  // `adapters`: the folders of what requests name by index, in the order of Role; none: the base model alone.
  // `number`: the iteration or batch that begins with it, for the metrics.
  Rollouts(Session& session, int64_t number, const std::vector<std::string>& adapters);
  Engine& engine() { return engine_; }

 private:
  void serve(Session& session, const std::vector<std::string>& folders);

  const Stopwatch whole_;       // before all that takes time
  double adapter_seconds_ = 0;  // from device memory to where the engine has them
  EngineOptions options_;
  ModelStep model_;
  Engine engine_;
};

}  // namespace sl
