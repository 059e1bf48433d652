// Six LoRA steps of SmolLM2-135M-Instruct against those recorded from PEFT, from an adapter that a formula
// gives (tests/reference/README.md).
#include "tests/model/reference.hpp"
#include "tests/support.hpp"
#include "train/trainer.hpp"

#include <fstream>

namespace sl::test {
namespace {

double splitmix_uniform(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1.0p-53;
}

double norm_of(const Tensor& tensor) {
  double sum = 0.0;
  for (float value : download<float>(tensor)) sum += static_cast<double>(value) * value;
  return std::sqrt(sum);
}

TEST(SmolLM2Training, StepsArePefts) {
  std::ifstream file(reference("smollm2/lora.json"));
  const auto recorded = nlohmann::json::parse(file);
  const auto alone = make_local_communicator();
  const LoraShape shape{recorded.at("rank"), recorded.at("alpha")};
  const LoadedModel model(open_model(smollm2_path()), {}, *alone,
                          ServedAdapters::room_for(std::vector{shape}));
  Adapter adapter(model.config(), model.shard(), shape, Device::cpu, "adapter");
  for (uint64_t index = 0; const ShardedTensor& tensor : adapter.tensors()) {
    const double scale = recorded.at(index % 2 == 0 ? "scale_A" : "scale_B");
    std::vector<float> values(static_cast<size_t>(tensor.local.size()));
    for (uint64_t e = 0; e < values.size(); ++e) {
      values[e] = static_cast<float>((2.0 * splitmix_uniform((index << 32) + e) - 1.0) * scale);
    }
    upload(tensor.local, std::span<const float>(values));
    EXPECT_NEAR(norm_of(tensor.local), recorded.at("initial_norms").at(index).at(1).get<double>(), 1e-6)
        << tensor.name;
    ++index;
  }

  std::vector<TrainingRow> rows;
  for (const auto& sequence : recorded.at("sequences"))
    rows.push_back({sequence.at("tokens"), sequence.at("mask")});
  TrainingOptions options;
  options.epochs = 1;
  options.learning_rate = recorded.at("learning_rate");
  options.max_grad_norm = 0.0;
  options.shuffle = false;
  options.activation_bytes = int64_t{1} << 29;
  Trainer trainer(model.transformer(), {.adapter = &adapter}, rows, options, *alone);
  ASSERT_EQ(trainer.total_steps(), recorded.at("steps").get<int64_t>());
  for (size_t step = 0; trainer.step(); ++step) {
    const double loss = recorded.at("losses").at(step);
    const double norm = recorded.at("grad_norms").at(step);
    EXPECT_NEAR(trainer.last().loss, loss, 1e-4 * loss) << "step " << step;
    EXPECT_NEAR(trainer.last().grad_norm, norm, 1e-3 * norm) << "step " << step;
  }
  for (size_t index = 0; index < adapter.tensors().size(); ++index) {
    const double norm = recorded.at("final_norms").at(index).at(1);
    EXPECT_NEAR(norm_of(adapter.tensors()[index].local), norm, 1e-3 * norm) << adapter.tensors()[index].name;
  }
}

}  // namespace
}  // namespace sl::test
