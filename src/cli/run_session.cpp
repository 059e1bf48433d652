#include "cli/run_session.hpp"

#include <fmt/format.h>

#include <memory>
#include <set>

#include "core/log.hpp"

namespace sl {
namespace {

// Options that may differ when a run continues: where and how fast it runs, not what it computes.
const std::set<std::string, std::less<>> free_to_change = {"out",
                                                           "config",
                                                           "model",
                                                           "device",
                                                           "tp",
                                                           "collectives",
                                                           "threads",
                                                           "storage",
                                                           "kv-memory",
                                                           "page-tokens",
                                                           "max-sequences",
                                                           "max-batch-rows",
                                                           "log-level",
                                                           "iterations",
                                                           "stall-timeout",
                                                           "table-chunk",
                                                           "table-alignment",
                                                           "checkpoint-every",
                                                           "recompute",
                                                           "pass-tokens",
                                                           "activation-memory",
                                                           "prompts",
                                                           "seeds",
                                                           "adapter",
                                                           "run"};

void check_same_run(const RunSetup& setup, const nlohmann::json& before, const ModelSource& source) {
  const RunFolder& folder = setup.folder;
  if (before.value("fingerprint", "") != source.fingerprint) {
    throw InputError(fmt::format("was begun with another model ({})", before.value("model", "unknown")),
                     folder.path(), "give that model, or another --out");
  }
  for (const auto& [name, value] : setup.options.items()) {
    if (free_to_change.contains(name) || !before.contains("options") || !before["options"].contains(name))
      continue;
    if (name == setup.may_rise && before["options"][name] < value) continue;
    if (before["options"][name] != value) {
      throw InputError(
          fmt::format("was begun with --{} {}, not {}", name, before["options"][name].dump(), value.dump()),
          folder.path(), "give the same value, or another --out");
    }
  }
}

// What rank 0 does before the others may touch the folder. Leaves run.json saying "running".
std::unique_ptr<RunLock> open_run(const RunSetup& setup, const ModelSource& source, const Grid& grid) {
  const RunFolder& folder = setup.folder;
  auto lock = std::make_unique<RunLock>(folder);
  nlohmann::json run = folder.read_run();
  const bool begins = run.is_null();
  if (begins) {
    run = {{"version", SELFLENGTHEN_VERSION},
           {"model", source.path},
           {"fingerprint", source.fingerprint},
           {"options", setup.options}};
  } else {
    check_same_run(setup, run, source);
  }
  setup.opened(run, begins, grid);
  run["state"] = state_name(RunState::running);
  run["why"] = "";
  run["grid"] = {{"dp", grid.dp}, {"tp", grid.tp}};
  folder.write_run(run);
  return lock;
}

// Any rank may be the only one that knows, and several may know at once; what went wrong first is what
// counts.
void note_failure(const RunFolder& folder, const char* why) {
  try {
    folder.set_state(RunState::failed, why);
  } catch (const std::exception& error) {
    spdlog::debug("{}", error.what());
  }
}

}  // namespace

int run_session(const RunSetup& setup, const std::function<void(Session&)>& work,
                const std::function<void()>& done_on_first) {
  RunFolder folder = setup.folder;
  ModelSource source = open_model(setup.model.model);

  Ranks ranks = start_ranks(setup.model);
  catch_stop_signals();
  std::unique_ptr<RunLock> lock;
  if (ranks.first()) lock = open_run(setup, source, ranks.groups.grid);
  ranks.groups.world->barrier();

  const auto watchdog = watch_over(ranks, folder, setup.stall_timeout,
                                   [&](const std::string& line) { note_failure(folder, line.c_str()); });

  const std::unique_ptr<LoadedModel> model =
      load_model(std::move(source), ranks, ServedAdapters::room_for(setup.adapters));
  const EngineLimits limits =
      engine_limits(setup.engine, model->transformer(), model->config().max_positions);
  log_memory();
  SharedCounters counters(ranks.session, 4);
  Progress progress(ranks.first(), ranks.groups.grid.dp);
  Session session{setup.method, limits, *model,   setup.prompts,       ranks.groups,
                  counters,     folder, progress, setup.first_adapted, setup.tables};
  try {
    work(session);
  } catch (const Stopped&) {
    progress.finish();
    if (ranks.first()) {
      folder.set_state(RunState::stopped, "asked by a signal");
      spdlog::info("stopped at a signal; the same command continues {}", folder.path());
    }
    return 0;
  } catch (const std::exception& error) {
    note_failure(folder, error.what());
    throw;
  }
  if (ranks.first()) {
    folder.set_state(RunState::done, "");
    done_on_first();
  }
  return 0;
}

}  // namespace sl
