// A command that works in a run folder: opens it or goes on in it, starts the ranks and the model, runs, and
// leaves the state behind, whatever happens.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/launch.hpp"
#include "lengthen/session.hpp"

namespace sl {

struct RunSetup {
  const ModelChoice& model;
  const EngineChoice& engine;
  const MethodOptions& method;
  const Prompts& prompts;
  double stall_timeout = default_stall_timeout;
  RunFolder folder;
  nlohmann::json options;           // resolved: when the run goes on they must be the same
  std::string may_rise = "";        // but for this one, which may be larger then
  std::vector<LoraShape> adapters;  // that are served at a time
  int64_t first_adapted = 2;        // Session's
  TableLayout tables = {};
  // On rank 0, with what run.json is going to hold: of a run that begins, or one that goes on and whose
  // options and model have been found to be the same. May add to it and refuse it.
  std::function<void(nlohmann::json& run, bool begins, const Grid& grid)> opened = [](auto&&...) {};
};

// Runs `work` on every rank, then `done_on_first` on rank 0, unless a signal stopped it. The exit code.
int run_session(const RunSetup& setup, const std::function<void(Session&)>& work,
                const std::function<void()>& done_on_first);

}  // namespace sl
