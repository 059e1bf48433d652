#include "train/training_checkpoint.hpp"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <utility>

#include "core/activity.hpp"
#include "core/error.hpp"
#include "core/log.hpp"

namespace sl {
namespace {

using nlohmann::json;

constexpr const char* kind = "selflengthen training";
constexpr double patience = 1.0;  // seconds until a wait is seen to go on

// Each tensor of the training three times: itself and its moments.
constexpr std::array<std::pair<const char*, Optimizer::Part>, 3> parts = {
    {{"parameter/", Optimizer::Part::parameter},
     {"first_moment/", Optimizer::Part::first_moment},
     {"second_moment/", Optimizer::Part::second_moment}}};

// Where numbers from .. from + count of the local tensor are in the whole one.
Strip strip_of(const ShardedTensor& tensor, int64_t from, int64_t count) {
  const int64_t columns = tensor.shape.back();
  switch (tensor.axis) {
    case ShardedTensor::Axis::replicated:
      return {0, columns, from, count};
    case ShardedTensor::Axis::rows:
      if (tensor.shape.size() == 2) return {0, columns, tensor.range.begin * columns + from, count};
      [[fallthrough]];  // a vector is one row
    case ShardedTensor::Axis::columns:
      return {tensor.range.begin, tensor.range.size(), from, count};
  }
  throw BugError("unknown axis of a sharded tensor");
}

// The copy is the three parts of the state, one after the other, as they lie on the device.
int64_t numbers_of(const Optimizer& optimizer) {
  if (optimizer.held_tensors(true).empty()) return 0;  // another replica stands for all
  return static_cast<int64_t>(parts.size()) * optimizer.state(Optimizer::Part::parameter).size();
}

std::vector<CheckpointPiece> pieces_of(const Optimizer& optimizer) {
  std::vector<CheckpointPiece> pieces;
  int64_t begin = 0;
  for (const auto& [prefix, part] : parts) {
    for (const Optimizer::HeldTensor& held : optimizer.held_tensors(true)) {
      pieces.push_back({.tensor = prefix + held.tensor->name,
                        .shape = held.tensor->shape,
                        .strip = strip_of(*held.tensor, held.from, held.count),
                        .at = begin + held.at,
                        .part = {}});
    }
    begin += optimizer.state(part).size();
  }
  return pieces;
}

std::string to_text(const std::vector<CheckpointPiece>& pieces) {
  json rows = json::array();
  for (const CheckpointPiece& p : pieces) {
    rows.push_back({p.tensor, p.shape, p.strip.column, p.strip.width, p.strip.begin, p.strip.count, p.at,
                    p.part, p.crc32});
  }
  return rows.dump();
}

void add_from_text(const std::string& text, std::vector<CheckpointPiece>& pieces) {
  for (const json& row : json::parse(text)) {
    pieces.push_back({.tensor = row[0],
                      .shape = row[1],
                      .strip = {row[2], row[3], row[4], row[5]},
                      .at = row[6],
                      .part = row[7],
                      .crc32 = row[8]});
  }
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

void Trainer::load_checkpoint(const std::string& path) {
  const CheckpointFile file(path);
  if (file.index().kind != kind)
    throw InputError("is not the checkpoint of a training", path, "give a file that a training has saved");
  const auto integer = [&](const char* name) {
    const auto found = file.index().integers.find(name);
    if (found == file.index().integers.end())
      throw InputError(fmt::format("lacks '{}'", name), path, "give a file that a training has saved");
    return found->second;
  };
  if (std::bit_cast<uint64_t>(integer("fingerprint")) != state_.fingerprint) {
    throw InputError("was saved with other training data or options", path,
                     "continue with the same, or start anew in another folder");
  }
  const int64_t batch_sequences = integer("batch_sequences");
  if (batch_sequences <= 0 || (options_.batch_sequences > 0 && options_.batch_sequences != batch_sequences)) {
    throw InputError(fmt::format("was saved with steps of {} sequences", batch_sequences), path,
                     "continue with the same number, or start anew in another folder");
  }
  for (const auto& [prefix, part] : parts) {
    for (const ShardedTensor& tensor : optimizer_.gradient().tensors()) {
      const auto found = file.shapes().find(prefix + tensor.name);
      if (found == file.shapes().end() || found->second != tensor.shape) {
        throw InputError(fmt::format("lacks tensor '{}{}' in the shape of this model", prefix, tensor.name),
                         path, "continue with the same model and adapter");
      }
    }
  }
  std::vector<float> numbers;
  for (const auto& [prefix, part] : parts) {
    for (const Optimizer::HeldTensor& held : optimizer_.held_tensors(false)) {
      numbers.resize(static_cast<size_t>(held.count));
      file.read(prefix + held.tensor->name, strip_of(*held.tensor, held.from, held.count), numbers.data());
      upload_floats(optimizer_.state(part).rows(held.at, held.at + held.count), numbers);
    }
  }
  optimizer_.publish();
  state_.step = integer("step");
  state_.updates = integer("updates");
  state_.skipped = integer("skipped");
  state_.skipped_in_a_row = integer("skipped_in_a_row");
  state_.batch_sequences = batch_sequences;
  total_steps_ = options_.epochs * steps_an_epoch();
  optimizer_.set_updates(state_.updates);
}

TrainingCheckpoint::TrainingCheckpoint(Trainer& trainer, std::string path, Communicator& world)
    : trainer_(trainer),
      path_(std::move(path)),
      world_(world),
      writer_(trainer.context().device, numbers_of(trainer.optimizer()), pieces_of(trainer.optimizer())) {}

bool TrainingCheckpoint::resume() {
  // Whether it is there says rank 0: a shared file system may tell the others late. Each reads a share.
  int64_t there = world_.rank() == 0 && std::filesystem::exists(path_) ? 1 : 0;
  world_.all_reduce_max(std::span(&there, 1));
  if (there == 0) return false;
  int64_t damaged = holds_checkpoint(path_, world_.rank(), world_.size()) ? 0 : 1;
  world_.all_reduce_max(std::span(&damaged, 1));
  if (damaged != 0) {
    if (world_.rank() == 0) remove_checkpoint(path_);
    world_.barrier();
    return false;
  }
  trainer_.load_checkpoint(path_);
  saved_step_ = trainer_.state().step;
  return true;
}

void TrainingCheckpoint::save() {
  const TrainerState& state = trainer_.state();
  if (state.step == saved_step_ || state.step == draining_step_) return;
  if (!poll()) {
    ++skipped_;
    if (world_.rank() == 0) {
      spdlog::warn("no checkpoint of step {}: that of step {} is still being written ({} left out so far)",
                   state.step, draining_step_, skipped_);
    }
    return;
  }
  const auto begin = std::chrono::steady_clock::now();
  float* into = writer_.copy();
  for (const auto& [prefix, part] : parts) {
    if (writer_.pieces().empty()) break;
    const Tensor& numbers = trainer_.optimizer().state(part);
    copy_to_host(into, numbers, numbers.bytes());
    into += numbers.size();
  }
  stall_ = seconds_since(begin);
  index_ = {.kind = kind,
            .integers = {{"step", state.step},
                         {"updates", state.updates},
                         {"skipped", state.skipped},
                         {"skipped_in_a_row", state.skipped_in_a_row},
                         {"batch_sequences", state.batch_sequences},
                         {"fingerprint", std::bit_cast<int64_t>(state.fingerprint)}},
            .pieces = {}};
  draining_step_ = state.step;
  const std::filesystem::path folder = std::filesystem::path(path_).parent_path();
  writer_.drain(folder / checkpoint_part(path_, state.step, world_.rank()));
}

bool TrainingCheckpoint::poll() { return draining_step_ < 0 || commit(0.0); }

// Waits so long at most for this rank's part.
bool TrainingCheckpoint::commit(double seconds) {
  // A rank that has drained its part before the others is no longer draining.
  int64_t left = writer_.draining() && !writer_.drained(seconds) ? 1 : 0;
  world_.all_reduce_max(std::span(&left, 1));
  if (left != 0) return false;
  // Listed before the other ranks go on: they may begin with the next parts while this index is written.
  std::set<std::string> before;
  if (world_.rank() == 0) before = checkpoint_parts(path_);
  const std::vector<std::string> pieces = world_.all_gather(to_text(writer_.pieces()));
  if (world_.rank() == 0) {
    for (const std::string& of_rank : pieces) add_from_text(of_rank, index_.pieces);
    write_checkpoint_index(path_, index_, before);
    spdlog::debug(
        "checkpoint of step {}: training waited {:.3f} s; {:.3f} GB of {} ranks, rank 0 wrote {:.3f} s",
        draining_step_, stall_, 1e-9 * static_cast<double>(writer_.bytes()), world_.size(),
        writer_.seconds());
  }
  saved_step_ = std::exchange(draining_step_, -1);
  return true;
}

void TrainingCheckpoint::finish() {
  const auto wait = [&] {
    while (draining_step_ >= 0 && !commit(patience)) activity().progress();
  };
  wait();
  save();
  wait();
}

void TrainingCheckpoint::remove() {
  writer_.give_up();
  draining_step_ = -1;
  world_.barrier();  // nobody writes any more
  if (world_.rank() == 0) remove_checkpoint(path_);
  saved_step_ = -1;
  world_.barrier();
}

}  // namespace sl
