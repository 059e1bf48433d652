#include "cli/launch.hpp"

#include <fmt/format.h>
#include <omp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "core/buffer.hpp"
#include "core/log.hpp"
#include "dist/nccl.hpp"
#include "kernels/device.hpp"
#include "rollout/model_step.hpp"

// OpenBLAS built with its own threads does not follow OpenMP's setting; another BLAS has no such function.
extern "C" void openblas_set_num_threads(int) __attribute__((weak));

namespace sl {
namespace {

std::unique_ptr<MpiSession>& session_slot() {
  static std::unique_ptr<MpiSession> slot;
  return slot;
}

// Cores that the ranks of this node may use together, by the union of their affinity masks: whether each is
// bound to its own or all share one set, divided by the ranks that is a fair share. Collective.
int64_t cores_of_node(Communicator& world) {
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  cpu_set_t own;
  CPU_ZERO(&own);
  if (sched_getaffinity(0, sizeof own, &own) != 0) return 1;
  const std::string name = host;
  const std::string mask(reinterpret_cast<const char*>(&own), sizeof own);
  cpu_set_t all;
  CPU_ZERO(&all);
  for (const std::string& other : world.all_gather(mask + name)) {
    if (other.substr(sizeof own) != name) continue;
    cpu_set_t theirs;
    std::memcpy(&theirs, other.data(), sizeof theirs);
    CPU_OR(&all, &all, &theirs);
  }
  return std::max(1, CPU_COUNT(&all));
}

int64_t threads_of_rank(const ModelChoice& choice, const MpiSession& session, Communicator& world) {
  const int64_t share = std::max<int64_t>(1, cores_of_node(world) / session.node_size());
  if (choice.threads > 0) return choice.threads;
  return std::getenv("OMP_NUM_THREADS") ? omp_get_max_threads() : share;
}

// Where it is remembered which algorithm is fastest for a product on this GPU; empty where there is no home.
std::string algorithm_cache() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const std::string folder = cache ? cache : home ? std::string(home) + "/.cache" : "";
  if (folder.empty()) return "";
  std::error_code refused;
  std::filesystem::create_directories(folder + "/selflengthen", refused);
  return refused ? "" : folder + "/selflengthen/products";
}

std::unique_ptr<Communicator> between_gpus(std::unique_ptr<Communicator> group, const Context& context,
                                           CollectivesChoice choice) {
  if (choice == CollectivesChoice::mpi) return group;
  const bool peers = choice == CollectivesChoice::automatic;
  return with_nccl(std::move(group), context, peers ? GpuCollectives{} : GpuCollectives{.peer_bytes = 0});
}

double gibibytes(int64_t bytes) { return static_cast<double>(bytes) / (int64_t{1} << 30); }

}  // namespace

const MpiSession* live_session() { return session_slot().get(); }
void end_ranks() { session_slot().reset(); }

Ranks start_ranks(const ModelChoice& choice) {
  const Device device = resolve_device(choice.device);
  if (!session_slot()) session_slot() = std::make_unique<MpiSession>();
  const MpiSession& session = *session_slot();
  start_log(session.rank(), session.size(), choice.log_level);
  Ranks ranks{session, make_groups(session, grid_of(session.size(), choice.tp)), nullptr,
              Context{.device = device,
                      .deterministic = choice.deterministic,
                      .storage = resolve_storage(choice.storage, device)}};
  if (device == Device::cuda) {
    ranks.gpu = open_gpu(static_cast<int>(session.node_rank() % gpu_count()), algorithm_cache());
    ranks.context.cuda = ranks.gpu.get();
    for (std::unique_ptr<Communicator>* group : {&ranks.groups.tensor, &ranks.groups.data})
      *group = between_gpus(std::move(*group), ranks.context, choice.collectives);
    spdlog::debug("{}, {}", gpu_name(ranks.context), name_of(ranks.context.storage));
  }
  const auto threads = static_cast<int>(threads_of_rank(choice, session, *ranks.groups.world));
  omp_set_num_threads(threads);
  if (openblas_set_num_threads) openblas_set_num_threads(threads);
  spdlog::debug("{} replicas of {} ranks, {} threads a rank", ranks.groups.grid.dp, ranks.groups.grid.tp,
                threads);
  return ranks;
}

std::unique_ptr<Watchdog> watch_over(const Ranks& ranks, const RunFolder& folder, double timeout,
                                     std::function<void(const std::string&)> note) {
  if (timeout <= 0.0) return nullptr;
  const int rank = ranks.session.rank(), size = ranks.session.size();
  if (rank == 0) Watchdog::prepare(folder.beats(), size);
  ranks.groups.world->barrier();
  const auto end = [rank, size, note = std::move(note)](const std::string& line) {
    fmt::print(stderr, "selflengthen{}: {}\n", size > 1 ? fmt::format(" [rank {}]", rank) : "", line);
    note(line);
    // Not MPI_Abort: this thread must not call MPI, and the one that may is the one that hangs. The launcher
    // ends the other ranks when one has left like this (mpirun always, srun with -K1).
    std::_Exit(1);
  };
  return std::make_unique<Watchdog>(folder.beats(), rank, size, timeout, end);
}

void catch_stop_signals() {
  struct sigaction action = {};
  action.sa_handler = [](int) { stop_signal = 1; };
  for (int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaction(signal, &action, nullptr);
}

void check_room(const ModelConfig& config, const Ranks& ranks) {
  if (ranks.context.device != Device::cuda) return;
  // The weights must leave some room for keys, values and activations.
  constexpr int64_t least_besides = int64_t{1} << 30;
  const int64_t bytes = config.parameters() * size_of(ranks.context.storage);
  const int64_t available = free_device_bytes(ranks.context);
  const int tp = ranks.groups.grid.tp;
  if (bytes / tp + least_besides <= available) return;
  int wanted = tp;
  while (bytes / wanted + least_besides > available && wanted < 1024) wanted *= 2;
  throw InputError(fmt::format("its weights need {:.1f} GiB a rank, of which {:.1f} GiB are free on the GPU",
                               gibibytes(bytes / tp), gibibytes(available)),
                   "--model",
                   fmt::format("share them between more GPUs (--tp {}), or free the card", wanted));
}

std::unique_ptr<LoadedModel> load_model(ModelSource source, Ranks& ranks, int64_t adapter_rank) {
  check_room(source.config, ranks);
  auto model =
      std::make_unique<LoadedModel>(std::move(source), ranks.context, *ranks.groups.tensor, adapter_rank);
  spdlog::debug("{}: {} layers, {} weights", model->source().path, model->config().layers,
                model->config().parameters());
  return model;
}

std::optional<Adapter> load_chosen_adapter(const ModelChoice& choice, const LoadedModel& model) {
  if (choice.adapter.empty()) return std::nullopt;
  return model.adapter_from(choice.adapter);
}

EngineLimits engine_limits(const EngineChoice& chosen, const Transformer& model, int64_t longest) {
  const EngineChoice choice = resolve_engine(chosen, model.context.device);
  const int64_t page_bytes =
      KvCache::bytes_per_page(*model.config, *model.shard, model.context.storage, choice.page_tokens);
  int64_t memory = choice.kv_memory << 20;
  if (memory == 0) {
    constexpr int64_t reserve = int64_t{768} << 20;  // for libraries, graphs and adapters
    const EngineOptions options{choice.max_batch_rows, choice.max_sequences, longest};
    memory = free_device_bytes(model.context) - reserve -
             ModelStep::bytes_besides_pages(model, options, choice.page_tokens);
    // The ranks of a replica plan the same steps, so they need the same pages: as many as the fullest card
    // has.
    int64_t lacking = -memory;
    model.tensor_parallel->all_reduce_max(std::span(&lacking, 1));
    memory = -lacking;
  }
  const int64_t held = memory / page_bytes;
  if (held < 1) {
    throw InputError(fmt::format("{} MiB do not hold one page of {} bytes", memory >> 20, page_bytes),
                     "--kv-memory",
                     "give more, choose a smaller --page-tokens, or more GPUs a replica (--tp)");
  }
  const int64_t useful = choice.max_sequences * ((longest + choice.page_tokens - 1) / choice.page_tokens) + 1;
  return {.tokens_per_page = choice.page_tokens,
          .pages = std::min(held, useful),
          .max_sequences = choice.max_sequences,
          .max_batch_rows = choice.max_batch_rows,
          .max_positions = longest};
}

void log_memory() {
  for (const MemoryEntry& entry : memory_table()) {
    spdlog::debug("memory {:<24} {:>12.3f} MiB on {}", entry.name,
                  static_cast<double>(entry.bytes) / (1 << 20), name_of(entry.device));
  }
}

}  // namespace sl
