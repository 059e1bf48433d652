// bench io: what a run writes and reads, beside plain files of the same size on the same file system.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "cli/bench.hpp"
#include "cli/commands.hpp"
#include "core/rng.hpp"
#include "io/checkpoint_writer.hpp"
#include "io/dataset.hpp"
#include "io/durable.hpp"
#include "io/journal.hpp"

namespace sl {
namespace {

using nlohmann::json;

struct IoChoice {
  ModelChoice machine;
  std::string folder = ".";
  int64_t megabytes = 256;
  int64_t repeats = 3;
  TableLayout tables;
};

// A text like a long response: letters that do not compress.
std::string text_of(int64_t bytes, uint64_t seed) {
  Random random({.seed = seed});
  std::string text(static_cast<size_t>(bytes), ' ');
  for (char& letter : text) letter = static_cast<char>('a' + random.below(26));
  return text;
}

// Every rank works in files of its own, and all of them in those of the table.
class IoBench {
 public:
  IoBench(const Ranks& ranks, const IoChoice& choice)
      : ranks_(ranks), repeats_(choice.repeats), bytes_(choice.megabytes << 20), tables_(choice.tables) {
    int64_t process = getpid();
    ranks.groups.world->broadcast(std::as_writable_bytes(std::span(&process, 1)), 0);
    base_ = fmt::format("{}/selflengthen-bench-{}", choice.folder, process);
    text_ = text_of(std::min(bytes_, piece), static_cast<uint64_t>(ranks.session.rank()));
  }
  ~IoBench() {
    for (const std::string& path : {own(), table(), journal()}) ::unlink(path.c_str());
    remove_checkpoint(checkpoint());
  }
  IoBench(const IoBench&) = delete;
  IoBench& operator=(const IoBench&) = delete;

  json measure() {
    const double one = static_cast<double>(bytes_), all = one * ranks_.session.size();
    const double raw_write = all / seconds_of(true, [&] { write_plain(); });
    const double raw_read = one / seconds_of(ranks_.first(), [&] { read_plain(); });
    ::unlink(own().c_str());

    const Table slice = slice_of_responses();
    const double table_write =
        all / seconds_of(true, [&] { write_table(table(), slice, ranks_.groups.raw_world, tables_); });
    const double table_read =
        all / seconds_of(ranks_.first(), [&] {
          forget(table());
          require(read_table(table()).rows() == slice.rows() * ranks_.session.size(), "rows were lost");
        });
    ::unlink(table().c_str());

    const std::vector<float> state = state_of_training();
    CheckpointWriter writer(Device::cpu, std::ssize(state), pieces_of(state));
    // As a training does it: it waits for the copy, and a thread drains that into the rank's part.
    const auto copy = [&] {
      std::memcpy(writer.copy(), state.data(), state.size() * sizeof(float));
      writer.drain(part());
    };
    std::vector<double> stalls;
    const double checkpoint_write = all / seconds_of(true, [&] {
                                      const Stopwatch watch;
                                      copy();
                                      stalls.push_back(watch.seconds());
                                      while (!writer.drained(1.0)) {
                                      }
                                    });
    const double stall = slowest(ranks_, *std::ranges::max_element(stalls));
    write_checkpoint_index(checkpoint(), {.kind = "bench", .integers = {}, .pieces = writer.pieces()});
    const double checkpoint_read = one / seconds_of(ranks_.first(), [&] {
                                     forget(part());
                                     CheckpointFile(checkpoint()).check();
                                   });
    remove_checkpoint(checkpoint());

    const double journal_write = all / seconds_of(true, [&] { write_journal(); });
    return {
        {"bench", "io"},
        {"ranks", ranks_.session.size()},
        {"folder", std::filesystem::path(base_).parent_path()},
        {"megabytes", bytes_ >> 20},
        {"table_chunk_kib", tables_.chunk_kib},
        {"table_alignment_kib", tables_.alignment_kib},
        {"gb_per_s",
         {{"table_write", 1e-9 * table_write},
          {"table_read", 1e-9 * table_read},
          {"checkpoint_write", 1e-9 * checkpoint_write},
          {"checkpoint_read", 1e-9 * checkpoint_read},
          {"journal_write", 1e-9 * journal_write}}},
        {"ceiling", {{"write_gb_per_s", 1e-9 * raw_write}, {"read_of_one_rank_gb_per_s", 1e-9 * raw_read}}},
        {"checkpoint_stall_seconds", stall},
        {"ratio", checkpoint_write / raw_write},
        {"ratio_of_table", table_write / raw_write}};
  }

 private:
  static constexpr int64_t piece = int64_t{8} << 20;
  static constexpr int64_t response = 8192;  // bytes of a text in the table and in the journal

  std::string own() const { return fmt::format("{}.{}", base_, ranks_.session.rank()); }
  std::string table() const { return base_ + ".table.h5"; }
  std::string checkpoint() const { return fmt::format("{}.{}.h5", base_, ranks_.session.rank()); }
  std::string part() const {
    return (std::filesystem::path(base_).parent_path() / checkpoint_part(checkpoint(), 0, 0)).string();
  }
  std::string journal() const { return fmt::format("{}.{}.log", base_, ranks_.session.rank()); }

  // Of the slowest rank, the median of the repeats; a rank that does not take part waits.
  double seconds_of(bool takes_part, const std::function<void()>& call) const {
    std::vector<double> times;
    for (int64_t i = 0; i < repeats_; ++i) {
      ranks_.groups.world->barrier();
      const Stopwatch watch;
      if (takes_part) call();
      times.push_back(slowest(ranks_, watch.seconds()));
    }
    std::ranges::nth_element(times, times.begin() + static_cast<int64_t>(times.size() / 2));
    return times[times.size() / 2];
  }

  void write_plain() const {
    const int file = ::open(own().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file < 0) throw SystemError("open", own(), errno);
    for (int64_t at = 0; at < bytes_; at += piece)
      write_all(file, text_.data(), static_cast<size_t>(std::min(piece, bytes_ - at)), own());
    sync_and_close(file, own());
  }

  void read_plain() const {
    forget(own());
    const int file = ::open(own().c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) throw SystemError("open", own(), errno);
    std::string buffer(static_cast<size_t>(piece), '\0');
    int64_t total = 0;
    for (ssize_t got = 1; got > 0; total += got) got = ::read(file, buffer.data(), buffer.size());
    ::close(file);
    require(total == bytes_, "a plain file was read in part");
  }

  // So that it is read from the device, where the system heeds the wish.
  static void forget(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    ::close(file);
  }

  Table slice_of_responses() const {
    const int64_t rows = bytes_ / response;
    std::vector<std::string> texts;
    std::vector<int64_t> words;
    for (int64_t row = 0; row < rows; ++row) {
      texts.push_back(text_.substr(static_cast<size_t>(row * response % (piece - response)), response));
      words.push_back(row);
    }
    Table slice;
    slice.add("response", std::move(texts));
    slice.add("words", std::move(words));
    return slice;
  }

  std::vector<float> state_of_training() const {
    Random random({.seed = 1, .sample = ranks_.session.rank()});
    std::vector<float> state(static_cast<size_t>(bytes_) / sizeof(float));
    for (float& value : state) value = static_cast<float>(random.uniform());
    return state;
  }

  // Tensors of 64 MiB.
  static std::vector<CheckpointPiece> pieces_of(const std::vector<float>& state) {
    constexpr int64_t width = 4096, most = width * 4096;
    std::vector<CheckpointPiece> pieces;
    for (int64_t at = 0; at < std::ssize(state); at += most) {
      const int64_t count = std::min(most, std::ssize(state) - at);
      pieces.push_back(
          {fmt::format("tensor_{}", at), {count / width, width}, {0, width, 0, count}, at, "", 0});
    }
    return pieces;
  }

  void write_journal() const {
    ::unlink(journal().c_str());
    Journal log(journal());
    for (int64_t row = 0; row < bytes_ / response; ++row) {
      log.append(
          {{"sample", row},
           {"response", text_.substr(static_cast<size_t>(row * response % (piece - response)), response)}});
      log.sync_if_due();
    }
    log.sync();
  }

  const Ranks& ranks_;
  int64_t repeats_, bytes_;
  TableLayout tables_;
  std::string base_, text_;
};

}  // namespace

int bench_io_command(const Arguments& arguments) {
  IoChoice choice;
  CommandLine line("bench io",
                   "Tables (written by all ranks together), checkpoints and journals (a file a rank), "
                   "made durable, beside plain files of the same bytes on the same file system.");
  line.group("What is measured");
  line.add("folder", choice.folder, "on the file system in question; nothing is left in it")
      .value_name("DIR");
  line.add("megabytes", choice.megabytes, "MiB of each rank's share", at_least(16));
  line.add("repeats", choice.repeats, "measurements; the median is reported", at_least(1));
  add_table_options(line, choice.tables);
  add_machine_options(line, choice.machine);
  line.example("mpirun -n 2 selflengthen bench io --folder /scratch");
  if (!line.parse(arguments)) return 0;
  if (!std::filesystem::is_directory(choice.folder))
    throw InputError("is no folder", choice.folder, "give one on the file system that is to be measured");
  choice.machine.device = on_host(choice.machine.device, "bench io");
  const Ranks ranks = start_ranks(choice.machine);
  const json measured = IoBench(ranks, choice).measure();
  if (ranks.first()) fmt::print("{}\n", measured.dump());
  return 0;
}

}  // namespace sl
