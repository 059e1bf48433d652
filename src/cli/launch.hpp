// How a command that uses ranks starts: MPI, the process grid, the log, threads, and the model.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "cli/options.hpp"
#include "core/context.hpp"
#include "dist/communicator_mpi.hpp"
#include "dist/watchdog.hpp"
#include "io/run_folder.hpp"
#include "lengthen/session.hpp"
#include "model/source.hpp"

namespace sl {

// The MPI session of the process once start_ranks has made it, else none. It ends in end_ranks(), which only
// main calls, so that main can still end all ranks when an exception arrives there.
const MpiSession* live_session();
void end_ranks();

struct Ranks {
  const MpiSession& session;
  Groups groups;
  std::shared_ptr<CudaState> gpu;  // of the context, where there is one
  Context context;

  bool first() const { return session.rank() == 0; }
  // The rank that speaks for its replica.
  bool leader() const { return groups.place.tp_rank == 0; }
};

// Starts MPI (once a process) and the log, makes the groups of a grid of `choice.tp` by what that leaves,
// sets the threads, and opens a GPU: the ranks of a node take its GPUs in turn. Collective over all ranks.
// InputError when tp does not divide the ranks or this build lacks the device.
Ranks start_ranks(const ModelChoice& choice);

// Watches over the ranks until it goes; none when `timeout` is 0. A job that stalls ends with exit code 1 and
// one line, which `note` hears first. Collective; the folder is there.
std::unique_ptr<Watchdog> watch_over(const Ranks& ranks, const RunFolder& folder, double timeout,
                                     std::function<void(const std::string&)> note);

// From now on SIGTERM, SIGINT and SIGUSR1 set stop_signal (lengthen/session.hpp).
void catch_stop_signals();

// InputError when a GPU has no room for this rank's share of such a model, with the tp that would help.
void check_room(const ModelConfig& config, const Ranks& ranks);
// Reads this rank's share of the weights. Collective over the replica. InputError when a GPU has no room for
// it, with the tp that would help.
std::unique_ptr<LoadedModel> load_model(ModelSource source, Ranks& ranks, int64_t adapter_rank = 0);
// The adapter the user named, if any.
std::optional<Adapter> load_chosen_adapter(const ModelChoice& choice, const LoadedModel& model);

// The limits of an engine on this model whose sequences hold `longest` tokens at most: as many pages as the
// memory holds, but no more than all sequences could use. InputError when not even one sequence of one page
// fits. Collective over the replica.
EngineLimits engine_limits(const EngineChoice& chosen, const Transformer& model, int64_t longest);

// The memory table at debug level.
void log_memory();

}  // namespace sl
