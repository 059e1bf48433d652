// Whole trainings against those recorded from PEFT and Transformers (tools/oracle/peft_training.py).
#include "dist/communicator_mpi.hpp"
#include "io/safetensors.hpp"
#include "model/served_adapters.hpp"
#include "tests/support.hpp"
#include "train/trainer.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <string>

namespace sl {
namespace {

using nlohmann::json;

const std::string reference = SELFLENGTHEN_SOURCE_DIR "/tests/reference/";

class AgainstPeft : public ::testing::TestWithParam<const char*> {
 protected:
  AgainstPeft()
      : config_(config_from_huggingface(reference + "models/" + GetParam())),
        shard_(config_, 1, 0),
        parameters_(load_parameters(config_, shard_, Device::cpu,
                                    *open_safetensors(reference + "models/" + GetParam()))),
        model_{{}, &config_, &shard_, &parameters_, alone_.get()} {
    std::ifstream file(folder_ + "data.json");
    data_ = json::parse(file);
    std::ifstream config_file(reference + "models/" + GetParam() + "/config.json");
    padding_token_ = json::parse(config_file).at("pad_token_id");
    for (const json& sequence : data_.at("sequences")) {
      rows_.push_back({sequence.at("tokens"), sequence.at("mask")});
    }
  }

  TrainingOptions options(const char* training) const {
    TrainingOptions options;
    options.epochs = 1;
    options.learning_rate = data_.at(training).at("learning_rate");
    options.max_grad_norm = 0.0;
    options.shuffle = false;
    options.activation_bytes = int64_t{1} << 30;
    return options;
  }

  void train_adapter(const char* training, int64_t steps, int64_t sequences_a_step, const char* final_name) {
    Adapter adapter = load_adapter(folder_ + "initial", config_, shard_, Device::cpu);
    const Adapter expected = load_adapter(folder_ + final_name, config_, shard_, Device::cpu);
    const Parameters with_room =
        load_parameters(config_, shard_, Device::cpu, *open_safetensors(reference + "models/" + GetParam()),
                        ServedAdapters::room_for(std::vector{adapter.shape()}));
    Transformer model = model_;
    model.parameters = &with_room;
    TrainingOptions chosen = options(training);
    chosen.batch_sequences = sequences_a_step;
    std::vector<TrainingRow> rows(rows_.begin(), rows_.begin() + steps * sequences_a_step);
    Trainer trainer(model, {.adapter = &adapter}, rows, chosen, *alone_);
    ASSERT_EQ(trainer.total_steps(), steps);
    const json& recorded = data_.at(training);
    for (size_t step = 0; trainer.step(); ++step) {
      const double loss = recorded.at("losses").at(step);
      const double rate = recorded.at("learning_rates").at(step);
      const double norm = recorded.at("grad_norms").at(step);
      EXPECT_NEAR(trainer.last().loss, loss, 1e-4 * loss) << "step " << step;
      EXPECT_NEAR(trainer.last().learning_rate, rate, 1e-12) << "step " << step;
      EXPECT_NEAR(trainer.last().grad_norm, norm, 1e-3 * norm) << "step " << step;
    }
    EXPECT_EQ(trainer.state().step, steps);
    EXPECT_LE(test::relative_error(download<float>(adapter.flat()), download<float>(expected.flat())), 1e-3);
  }

  // PyTorch leaves the lookups of the padding token out of the gradient of an embedding (padding_idx). Models
  // that pad with the end of turn, which the text holds, thereby lose a part of that row's gradient.
  bool lacks_padding_row(const ShardedTensor& tensor) const {
    const std::vector<int32_t>& text = rows_[0].tokens;
    return tensor.name == "model.embed_tokens.weight" &&
           std::find(text.begin(), text.end(), padding_token_) != text.end();
  }

  std::string folder_ = reference + "peft/" + GetParam() + "/";
  std::unique_ptr<Communicator> alone_ = make_local_communicator();
  ModelConfig config_;
  Shard shard_;
  Parameters parameters_;
  Transformer model_;
  json data_;
  int32_t padding_token_ = 0;
  std::vector<TrainingRow> rows_;
};

TEST_P(AgainstPeft, TwentyStepsOfAnAdapter) { train_adapter("lora", 20, 1, "final"); }

TEST_P(AgainstPeft, StepsOfTwoSequences) { train_adapter("accumulation", 5, 2, "final_accumulation"); }

TEST_P(AgainstPeft, OneStepOfAllWeights) {
  const json& recorded = data_.at("full");
  // The gradient by tensor, then the step.
  Parameters gradient(config_, shard_, Device::cpu, "gradients");
  const std::vector<TrainingRow> first(rows_.begin(), rows_.begin() + 1);
  const float weight = 1.0F / static_cast<float>(trained_tokens(first[0], 16384));
  const PackedBatch batch = pack(first, std::vector<int64_t>{0}, 16384, 16384, weight).front();
  TrainingPass pass(model_, {.max_rows = batch.rows()}, int64_t{1} << 30);
  const double loss = pass.forward_backward(batch, nullptr, {.parameters = &gradient}).loss_sum;
  EXPECT_NEAR(loss, recorded.at("loss").get<double>(), 1e-4 * loss);
  ASSERT_EQ(gradient.tensors().size(), recorded.at("gradient_norms").size());
  for (const ShardedTensor& tensor : gradient.tensors()) {
    double squares = 0.0;
    for (const float value : download<float>(tensor.local)) {
      squares += static_cast<double>(value) * static_cast<double>(value);
    }
    const double norm = recorded.at("gradient_norms").at(tensor.name);
    EXPECT_NEAR(std::sqrt(squares), norm, (lacks_padding_row(tensor) ? 5e-3 : 1e-4) * norm) << tensor.name;
  }

  TrainingOptions chosen = options("full");
  chosen.finetune = Finetune::full;
  chosen.warmup_ratio = 0.0;
  Trainer trainer(model_, {.parameters = &parameters_}, first, chosen, *alone_);
  ASSERT_TRUE(trainer.step());
  EXPECT_FALSE(trainer.step());
  EXPECT_NEAR(trainer.last().loss, recorded.at("loss").get<double>(), 1e-4 * loss);
  const double norm = recorded.at("grad_norm");
  EXPECT_NEAR(trainer.last().grad_norm, norm, 1e-3 * norm);
  const std::string weights = folder_ + "full.safetensors";
  if (!std::ifstream(weights)) return;  // recorded for one of the models
  const Parameters expected = load_parameters(config_, shard_, Device::cpu, *open_safetensors(weights));
  const Parameters before =
      load_parameters(config_, shard_, Device::cpu, *open_safetensors(reference + "models/" + GetParam()));
  for (size_t i = 0; i < expected.tensors().size(); ++i) {
    const auto was = download<float>(before.tensors()[i].local);
    auto moved = download<float>(parameters_.tensors()[i].local);
    auto should = download<float>(expected.tensors()[i].local);
    if (lacks_padding_row(expected.tensors()[i])) {
      const int64_t row = padding_token_ * config_.hidden;
      std::copy_n(moved.begin() + row, config_.hidden, should.begin() + row);
    }
    EXPECT_LE(test::relative_error(moved, should), 1e-3) << expected.tensors()[i].name;  // as adapters
    // The change itself: the first step of AdamW is the sign of the gradient, which rounding may turn where
    // the gradient is next to nothing.
    for (size_t k = 0; k < was.size(); ++k) {
      moved[k] -= was[k];
      should[k] -= was[k];
    }
    EXPECT_LE(test::relative_error(moved, should), 2e-2) << expected.tensors()[i].name;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, AgainstPeft, ::testing::Values("tied", "qwen2"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace sl
