// bench collective: sums between ranks, by every way this group has.
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "cli/bench.hpp"
#include "cli/commands.hpp"
#include "dist/nccl.hpp"
#include "kernels/device.hpp"
#include "kernels/ops.hpp"

namespace sl {
namespace {

using nlohmann::json;

struct CollectiveChoice {
  ModelChoice machine;
  int64_t from = int64_t{8} << 10, to = 0;  // bytes
  int64_t repeats = 9;
};

// Messages of a copy or a sum through peer memory that are measured.
constexpr int64_t peer_bytes = int64_t{32} << 20;

struct Way {
  std::string name;
  std::unique_ptr<Communicator> group;
  int64_t most_bytes;
};

// All ranks, through whatever can carry their sums.
std::vector<Way> ways_of(const Ranks& ranks, CollectivesChoice choice) {
  constexpr int64_t any = std::numeric_limits<int64_t>::max();
  std::vector<Way> ways;
  auto plain = ranks.session.world();
  if (choice == CollectivesChoice::mpi) {
    ways.push_back({"mpi", std::move(plain), any});
    return ways;
  }
  auto nccl = with_nccl(std::move(plain), ranks.context, {.peer_bytes = 0});
  const std::string name = way_of(*nccl);
  ways.push_back({name, std::move(nccl), any});
  if (name != "nccl" || choice == CollectivesChoice::nccl) return ways;
  for (const bool in_shares : {false, true}) {
    auto peers = with_nccl(ranks.session.world(), ranks.context,
                           {.peer_bytes = peer_bytes, .shares_from = in_shares ? 0 : peer_bytes + 1});
    if (way_of(*peers) != std::string("peer memory")) break;
    ways.push_back({in_shares ? "in_shares" : "at_once", std::move(peers), peer_bytes});
  }
  return ways;
}

// The slowest rank's seconds of a call, the median of `repeats` rounds of `count` calls. What goes in the
// stream is recorded, as a step of decoding is.
double seconds_of(const Context& context, Communicator& group, int64_t repeats, int64_t count,
                  const std::function<void()>& call) {
  const auto round = [&] {
    for (int64_t i = 0; i < count; ++i) call();
  };
  call();
  synchronize(context);
  const Graph graph = group.in_stream() ? Graph::record(context, round) : Graph();
  DeviceTimer timer(context);
  std::vector<double> times;
  for (int64_t i = 0; i <= repeats; ++i) {
    group.barrier();
    timer.start();
    if (group.in_stream()) {
      graph.replay(context);
    } else {
      round();
    }
    times.push_back(timer.stop() / static_cast<double>(count));
  }
  times.erase(times.begin());
  std::ranges::nth_element(times, times.begin() + static_cast<int64_t>(times.size() / 2));
  auto nanoseconds = static_cast<int64_t>(1e9 * times[times.size() / 2]);
  group.all_reduce_max(std::span(&nanoseconds, 1));
  return 1e-9 * static_cast<double>(nanoseconds);
}

void check_sum(const Context& context, Communicator& group, const Tensor& tensor, const std::string& way) {
  run(context, Fill{tensor, static_cast<float>(group.rank() + 1)});
  group.all_reduce_sum(tensor);
  const auto size = static_cast<float>(group.size());
  for (const int64_t at : {int64_t{0}, tensor.size() / 2, tensor.size() - 1}) {
    const float sum = download_floats(tensor.rows(at, at + 1)).front();
    require(sum == size * (size + 1.0F) / 2.0F,
            fmt::format("a sum of {} bytes through {} is wrong: {}", tensor.bytes(), way, sum));
  }
  run(context, Fill{tensor, 0.0F});  // stays zero, however often it is summed
}

json measure(const Ranks& ranks, const CollectiveChoice& choice) {
  const Context& context = ranks.context;
  const bool gpu = context.device == Device::cuda;
  const int64_t to = choice.to > 0 ? choice.to : (gpu ? int64_t{256} : int64_t{16}) << 20;
  std::vector<Way> ways = ways_of(ranks, choice.machine.collectives);
  Communicator& group = *ways.front().group;
  Arena arena(context.device, std::max(to, peer_bytes), "bench");
  const auto tensor_of = [&](int64_t bytes) {
    arena.release(0);
    return arena.take(context.storage, {bytes / size_of(context.storage)});
  };

  json line = {{"bench", "collective"},
               {"device", gpu ? gpu_name(context) : "cpu"},
               {"storage", name_of(context.storage)},
               {"ranks", group.size()}};
  const double size = group.size(), factor = 2.0 * (size - 1.0) / size;
  double best = 0.0;
  for (int64_t bytes = choice.from; bytes <= to; bytes *= 2) {
    const Tensor tensor = tensor_of(bytes);
    json entry = {{"bytes", bytes}};
    for (const Way& way : ways) {
      if (bytes > way.most_bytes) continue;
      check_sum(context, *way.group, tensor, way.name);
      const int64_t count =
          way.group->in_stream() ? std::clamp<int64_t>((int64_t{64} << 20) / bytes, 2, 64) : 2;
      const double seconds =
          seconds_of(context, *way.group, choice.repeats, count, [&] { way.group->all_reduce_sum(tensor); });
      const double rate = seconds > 0.0 ? factor * static_cast<double>(bytes) / seconds : 0.0;
      entry["microseconds"][way.name] = 1e6 * seconds;
      entry["bus_gb_per_s"][way.name] = 1e-9 * rate;
      best = std::max(best, rate);
    }
    line["sums"].push_back(entry);
  }
  // What a link carries: every GPU reads from the next one's memory at the same time.
  double ceiling = copy_rate(context);
  line["ceiling"] = {{"copy_gb_per_s", 1e-9 * ceiling}};
  const Tensor copied = tensor_of(peer_bytes);
  Communicator& last = *ways.back().group;
  if (copy_from_next(last, copied)) {
    const double seconds =
        seconds_of(context, last, choice.repeats, 8, [&] { copy_from_next(last, copied); });
    ceiling = static_cast<double>(copied.bytes()) / seconds;
    line["ceiling"]["peer_copy_gb_per_s"] = 1e-9 * ceiling;
  }
  line["best_bus_gb_per_s"] = 1e-9 * best;
  line["ratio"] = best / ceiling;
  return line;
}

}  // namespace

int bench_collective_command(const Arguments& arguments) {
  CollectiveChoice choice;
  CommandLine line(
      "bench collective",
      "Sums over all ranks in place, of every size: microseconds, and the bandwidth that a link needs for it "
      "(2 (n - 1) / n of the bytes), beside a copy from a neighbour's GPU. at_once and in_shares go through "
      "memory that the GPUs of a host map from each other.");
  line.group("What is measured");
  line.add("from", choice.from, "bytes of the smallest message", at_least(64));
  line.add("to", choice.to, "bytes of the largest, in steps of two; 0: 16 MiB, on a GPU 256 MiB",
           at_least(0));
  line.add("repeats", choice.repeats, "measurements; the median is reported", at_least(1));
  add_machine_options(line, choice.machine);
  line.example("mpirun -n 2 selflengthen bench collective");
  if (!line.parse(arguments)) return 0;
  const Ranks ranks = start_ranks(choice.machine);
  const json measured = measure(ranks, choice);
  if (ranks.first()) fmt::print("{}\n", measured.dump());
  return 0;
}

}  // namespace sl
