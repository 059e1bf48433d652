// Trainer: saving where a training stands, and continuing from there.
#include <fmt/format.h>

#include <array>
#include <bit>
#include <map>
#include <string>
#include <utility>

#include "core/error.hpp"
#include "io/checkpoint.hpp"
#include "train/trainer.hpp"

namespace sl {
namespace {

constexpr const char* kind = "selflengthen training";

// Each tensor of the training three times: itself and its moments.
constexpr std::array<std::pair<const char*, Optimizer::Part>, 3> parts = {
    {{"parameter/", Optimizer::Part::parameter},
     {"first_moment/", Optimizer::Part::first_moment},
     {"second_moment/", Optimizer::Part::second_moment}}};

}  // namespace

void Trainer::save_checkpoint(const std::string& path, bool writer) {
  CheckpointContent content;
  content.texts["kind"] = kind;
  content.integers = {{"step", state_.step},
                      {"updates", state_.updates},
                      {"skipped", state_.skipped},
                      {"skipped_in_a_row", state_.skipped_in_a_row},
                      {"batch_sequences", state_.batch_sequences},
                      {"fingerprint", std::bit_cast<int64_t>(state_.fingerprint)}};
  for (const auto& [prefix, part] : parts) {
    const FormOf form = optimizer_.whole(part);
    if (!writer) continue;
    for (const ShardedTensor& tensor : form.view().tensors()) {
      std::vector<float> whole = gather_whole(tensor, *model_.tensor_parallel);
      if (model_.tensor_parallel->rank() == 0) {
        content.tensors.push_back({prefix + tensor.name, tensor.shape, std::move(whole)});
      }
    }
  }
  if (writer && model_.tensor_parallel->rank() == 0) write_checkpoint(path, content);
}

void Trainer::load_checkpoint(const std::string& path) {
  const CheckpointContent content = read_checkpoint(path);
  const auto kind_found = content.texts.find("kind");
  if (kind_found == content.texts.end() || kind_found->second != kind) {
    throw InputError("is not the checkpoint of a training", path, "give a file that a training has saved");
  }
  const auto integer = [&](const char* name) {
    const auto found = content.integers.find(name);
    if (found == content.integers.end()) {
      throw InputError(fmt::format("lacks '{}'", name), path, "give a file that a training has saved");
    }
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
  std::map<std::string, const CheckpointTensor*> by_name;
  for (const CheckpointTensor& tensor : content.tensors) by_name[tensor.name] = &tensor;
  for (const auto& [prefix, part] : parts) {
    for (const ShardedTensor& tensor : optimizer_.gradient().tensors()) {
      const auto found = by_name.find(prefix + tensor.name);
      if (found == by_name.end() || found->second->shape != tensor.shape) {
        throw InputError(fmt::format("lacks tensor '{}{}' in the shape of this model", prefix, tensor.name),
                         path, "continue with the same model and adapter");
      }
    }
  }
  for (const auto& [prefix, part] : parts) {
    const FormOf form(model_, optimizer_.gradient(), Device::cpu, "checkpoint");
    for (const ShardedTensor& tensor : form.view().tensors())
      scatter_whole(tensor, by_name.at(prefix + tensor.name)->values);
    optimizer_.adopt(part, form);
  }
  state_.step = integer("step");
  state_.updates = integer("updates");
  state_.skipped = integer("skipped");
  state_.skipped_in_a_row = integer("skipped_in_a_row");
  state_.batch_sequences = batch_sequences;
  total_steps_ = options_.epochs * steps_an_epoch();
  optimizer_.set_updates(state_.updates);
}

}  // namespace sl
