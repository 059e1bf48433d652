#include "train/trainer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "core/error.hpp"
#include "core/log.hpp"
#include "core/rng.hpp"
#include "kernels/device.hpp"
#include "train/flops.hpp"
#include "train/schedule.hpp"

namespace sl {
namespace {

constexpr int64_t skipped_at_most = 10;
constexpr int32_t shuffle_stage = 4;  // the training stage of the method

// FNV-1a over 64-bit words.
class Fingerprint {
 public:
  void add(uint64_t word) { hash_ = (hash_ ^ word) * 0x100000001B3ULL; }
  void add(double number) { add(std::bit_cast<uint64_t>(number)); }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xCBF29CE484222325ULL;
};

uint64_t fingerprint_of(const std::vector<TrainingRow>& rows, const TrainingOptions& options,
                        const Trainable& trained) {
  Fingerprint print;
  for (const double number :
       {options.learning_rate, options.warmup_ratio, options.weight_decay, options.max_grad_norm}) {
    print.add(number);
  }
  for (const int64_t number : {options.epochs, options.cutoff, static_cast<int64_t>(options.shuffle)}) {
    print.add(static_cast<uint64_t>(number));
  }
  print.add(options.seed);
  if (trained.adapter != nullptr) print.add(static_cast<double>(trained.adapter->shape().alpha));
  for (const TrainingRow& row : rows) {
    print.add(static_cast<uint64_t>(row.tokens.size()));
    for (size_t i = 0; i < row.tokens.size(); ++i) {
      print.add((static_cast<uint64_t>(static_cast<uint32_t>(row.tokens[i])) << 1) | (row.mask[i] != 0));
    }
  }
  return print.value();
}

void check_rows(const std::vector<TrainingRow>& rows, int64_t vocabulary, int64_t cutoff) {
  int64_t learnt = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    learnt += trained_tokens(rows[i], cutoff);
    for (const int32_t token : rows[i].tokens) {
      if (token < 0 || token >= vocabulary) {
        throw InputError(fmt::format("token {} is outside the model's vocabulary of {}", token, vocabulary),
                         fmt::format("training row {}", i + 1), "use the tokenizer of this model");
      }
    }
  }
  if (learnt == 0) {
    throw InputError("no token is left to learn from", "training data",
                     "give rows with an answer that begins before the cut-off");
  }
}

void check_options(const TrainingOptions& options) {
  const auto demand = [](bool holds, const char* what) {
    if (!holds) throw InputError(what, "training options", "correct the option");
  };
  demand(options.epochs > 0, "the number of epochs is not positive");
  demand(options.learning_rate >= 0.0 && std::isfinite(options.learning_rate),
         "the learning rate is negative");
  demand(options.warmup_ratio >= 0.0 && options.warmup_ratio <= 1.0,
         "the warm-up ratio is not within 0 and 1");
  demand(options.weight_decay >= 0.0, "the weight decay is negative");
  demand(options.max_grad_norm >= 0.0, "the largest gradient norm is negative");
  demand(options.cutoff >= 2, "the cut-off is less than 2 tokens");
  demand(options.batch_sequences >= 0, "the number of sequences of a step is negative");
}

// Rows of the largest pass that can come up.
int64_t largest_pass(const std::vector<TrainingRow>& rows, const TrainingOptions& options) {
  int64_t longest = 0;
  int64_t all = 0;
  for (const TrainingRow& row : rows) {
    const int64_t needed = packed_rows(row, options.cutoff);
    longest = std::max(longest, needed);
    all += needed;
  }
  return std::max(longest, std::min(options.pass_tokens, all));
}

// Bytes for the activations: the same for all ranks of a replica, which compute layers again together.
int64_t activation_budget(const Transformer& model, const TrainingOptions& options) {
  if (options.activation_bytes > 0) return options.activation_bytes;
  if (model.context.device != Device::cuda) return std::numeric_limits<int64_t>::max();
  constexpr int64_t reserve = int64_t{512} << 20;  // for libraries, and for measuring products
  int64_t lacking = -(free_device_bytes(model.context) - reserve);
  model.tensor_parallel->all_reduce_max(std::span(&lacking, 1));
  return -lacking;
}

}  // namespace

Trainer::Trainer(const Transformer& model, const Trainable& trained, std::vector<TrainingRow> rows,
                 const TrainingOptions& options, Communicator& data_parallel)
    : model_(model),
      rows_((check_options(options), check_rows(rows, model.config->vocabulary, options.cutoff),
             std::move(rows))),
      options_(options),
      data_parallel_(&data_parallel),
      optimizer_(model, trained, options.weight_decay, data_parallel),
      pass_tokens_(largest_pass(rows_, options)),
      pass_(model,
            {.max_rows = pass_tokens_,
             .lora_rank = trained.adapter != nullptr ? trained.adapter->shape().rank : 0,
             .recompute = options.recompute},
            activation_budget(model, options)) {
  require((options.finetune == Finetune::lora) == (trained.adapter != nullptr),
          "what is trained is not what the options say");
  state_.batch_sequences = options.batch_sequences > 0 ? options.batch_sequences : data_parallel.size();
  state_.fingerprint = fingerprint_of(rows_, options, trained);
  total_steps_ = options.epochs * steps_an_epoch();
}

int64_t Trainer::steps_an_epoch() const {
  const auto rows = static_cast<int64_t>(rows_.size());
  return (rows + state_.batch_sequences - 1) / state_.batch_sequences;
}

const std::vector<int64_t>& Trainer::order_of(int64_t epoch) {
  if (order_epoch_ == epoch) return order_;
  order_epoch_ = epoch;
  order_.resize(rows_.size());
  std::iota(order_.begin(), order_.end(), int64_t{0});
  if (options_.shuffle) {
    Random random({.seed = options_.seed, .stage = shuffle_stage, .sample = epoch});
    for (size_t i = order_.size(); i > 1; --i) {
      std::swap(order_[i - 1], order_[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
    }
  }
  return order_;
}

bool Trainer::step() {
  if (state_.step >= total_steps_) return false;
  const ProfilerRange range("training step");
  const auto started = std::chrono::steady_clock::now();
  const int64_t epoch = state_.step / steps_an_epoch();
  const std::vector<int64_t>& order = order_of(epoch);
  const int64_t first = state_.step % steps_an_epoch() * state_.batch_sequences;
  const int64_t count = std::min(state_.batch_sequences, static_cast<int64_t>(order.size()) - first);
  const std::span<const int64_t> chosen(order.data() + first, static_cast<size_t>(count));

  last_ = {.step = state_.step + 1, .epoch = epoch + 1};
  int64_t learnt = 0;
  double flops = 0.0;
  for (const int64_t row : chosen) {
    const int64_t rows = packed_rows(rows_[static_cast<size_t>(row)], options_.cutoff);
    learnt += trained_tokens(rows_[static_cast<size_t>(row)], options_.cutoff);
    last_.tokens += rows;
    flops += training_flops(*model_.config, rows, options_.finetune == Finetune::full);
  }
  last_.learning_rate =
      options_.learning_rate *
      cosine_with_warmup(state_.step, warmup_steps(total_steps_, options_.warmup_ratio), total_steps_);
  ++state_.step;
  // Rows without anything to learn change nothing, not even the moments.
  if (learnt > 0) {
    // Every replica knows all rows, so each token gets its final weight at once.
    const int64_t replicas = data_parallel_->size();
    const int64_t replica = data_parallel_->rank();
    const auto share_begin = static_cast<size_t>(count * replica / replicas);
    const auto share_end = static_cast<size_t>(count * (replica + 1) / replicas);
    optimizer_.zero_gradient();
    const std::vector<PackedBatch> batches =
        pack(rows_, chosen.subspan(share_begin, share_end - share_begin), options_.cutoff, pass_tokens_,
             static_cast<float>(1.0 / static_cast<double>(learnt)));
    // Tensor-parallel ranks have parts of some gradients until finish_gradients().
    LayerDone layer_done;
    if (model_.shard->tp == 1) layer_done = [this](int64_t layer) { optimizer_.layer_complete(layer); };
    double loss = 0.0;
    for (const PackedBatch& batch : batches) {
      loss += pass_
                  .forward_backward(batch, optimizer_.adapter(), optimizer_.gradient(),
                                    &batch == &batches.back() ? layer_done : LayerDone())
                  .loss_sum;
    }
    finish_step(loss);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
  const double taken = std::max(seconds.count(), 1e-9);
  last_.tokens_per_second = static_cast<double>(last_.tokens) / taken;
  last_.tflops = 1e-12 * flops / taken / (data_parallel_->size() * model_.shard->tp);
  return true;
}

// From this replica's part of loss and gradient to the update.
void Trainer::finish_step(double loss) {
  const ProfilerRange range("update");
  pass_.finish_gradients(optimizer_.gradient());
  optimizer_.reduce_gradient();
  data_parallel_->all_reduce_sum(std::span(&loss, 1));
  last_.loss = loss;
  last_.grad_norm = optimizer_.gradient_norm();
  last_.skipped = !std::isfinite(last_.loss) || !std::isfinite(last_.grad_norm);
  if (last_.skipped) {
    ++state_.skipped;
    ++state_.skipped_in_a_row;
    spdlog::warn("training step {} is skipped: its loss is {} and its gradient norm {}", last_.step,
                 last_.loss, last_.grad_norm);
    // A short training may not have so many steps: then it has failed when it ends so.
    const bool ends_so = last_.step == total_steps_ && 2 * state_.skipped_in_a_row >= total_steps_;
    if (state_.skipped_in_a_row >= skipped_at_most || ends_so) {
      throw InputError(
          fmt::format("loss or gradient has not been finite for {} steps in a row", state_.skipped_in_a_row),
          fmt::format("training step {}", last_.step),
          "lower the learning rate, and check that the model itself scores the data well");
    }
    return;
  }
  state_.skipped_in_a_row = 0;
  // As torch's clip_grad_norm_.
  const double limit = options_.max_grad_norm;
  const double scale = limit > 0.0 ? std::min(1.0, limit / (last_.grad_norm + 1e-6)) : 1.0;
  optimizer_.update(last_.learning_rate, scale);
  state_.updates = optimizer_.updates();
}

}  // namespace sl
