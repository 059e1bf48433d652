// The gradients of the whole model against finite differences of its loss, and their independence of how the
// pass spends its memory.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "tests/train/tiny.hpp"

namespace sl {
namespace {

struct Case {
  bool qwen2, tied, lora;
};

class Gradient : public ::testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<Communicator> alone_ = make_local_communicator();
  tiny::Model model_{tiny::config(GetParam().qwen2, GetParam().tied), *alone_, GetParam().lora};
  PackedBatch batch_ = tiny::batch(tiny::rows(3, 37, 11));
};

// Central differences of second order from two steps (Richardson): the error falls with the fourth power.
double derivative(TrainingPass& pass, const PackedBatch& batch, const Adapter* adapter, float& entry) {
  const float kept = entry;
  const auto slope = [&](float step) {
    entry = kept + step;
    const float up = entry;
    const double above = pass.loss_only(batch, adapter).loss_sum;
    entry = kept - step;
    const double below = pass.loss_only(batch, adapter).loss_sum;
    const double width = static_cast<double>(up) - static_cast<double>(entry);
    entry = kept;
    return (above - below) / width;
  };
  return (4.0 * slope(0.005F) - slope(0.01F)) / 3.0;
}

double norm(const std::vector<float>& values) {
  double squares = 0.0;
  for (const float value : values) squares += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(squares);
}

TEST_P(Gradient, IsTheSlopeOfTheLossInEveryEntry) {
  Adapter adapter = model_.adapter(3);
  Adapter adapter_gradient = model_.zero_adapter();
  Parameters gradient(model_.config, model_.shard, Device::cpu, "gradients");
  const bool lora = GetParam().lora;
  const Trainable gradients =
      lora ? Trainable{.adapter = &adapter_gradient} : Trainable{.parameters = &gradient};
  const Trainable trained =
      lora ? Trainable{.adapter = &adapter} : Trainable{.parameters = &model_.parameters};
  const Adapter* used = lora ? &adapter : nullptr;
  TrainingPass pass(model_.transformer, {.max_rows = batch_.rows(), .lora_rank = 3}, tiny::plenty);
  const LossSums sums = pass.forward_backward(batch_, used, gradients);
  EXPECT_EQ(sums.loss_sum, pass.loss_only(batch_, used).loss_sum);
  for (size_t t = 0; t < trained.tensors().size(); ++t) {
    const ShardedTensor& tensor = trained.tensors()[t];
    const std::vector<float> found = download<float>(gradients.tensors()[t].local);
    std::vector<float> slopes;
    for (int64_t i = 0; i < tensor.local.size(); ++i) {
      slopes.push_back(static_cast<float>(derivative(pass, batch_, used, tensor.local.data<float>()[i])));
    }
    // The loss is known to float accuracy, which a difference divides by its width.
    const double noise = std::sqrt(static_cast<double>(slopes.size())) *
                         std::numeric_limits<float>::epsilon() * sums.loss_sum / 0.01;
    EXPECT_LE(test::relative_error(found, slopes), 2e-3 + noise / norm(slopes)) << tensor.name;
    EXPECT_LE(noise / norm(slopes), 0.05) << tensor.name;
  }
}

// `passes` forward_backward calls with the given memory; the gradient as one vector.
std::vector<float> gradient_of(const tiny::Model& model, const PackedBatch& batch, const Adapter* adapter,
                               const TrainingShape& shape, int64_t budget, int64_t* kept_layers) {
  Adapter adapter_gradient = model.zero_adapter();
  Parameters gradient(model.config, model.shard, Device::cpu, "gradients");
  TrainingPass pass(model.transformer, shape, budget);
  *kept_layers = pass.kept_layers();
  const Trainable gradients =
      adapter != nullptr ? Trainable{.adapter = &adapter_gradient} : Trainable{.parameters = &gradient};
  pass.forward_backward(batch, adapter, gradients);
  return download<float>(adapter != nullptr ? adapter_gradient.flat() : gradient.flat());
}

TEST_P(Gradient, DoesNotDependOnWhatIsComputedAgain) {
  const Adapter adapter = model_.adapter(3);
  const Adapter* used = GetParam().lora ? &adapter : nullptr;
  TrainingShape shape{.max_rows = batch_.rows() + 5, .lora_rank = 3, .recompute = Recompute::none};
  int64_t kept = 0;
  const std::vector<float> reference = gradient_of(model_, batch_, used, shape, tiny::plenty, &kept);
  EXPECT_EQ(kept, 2);
  shape.recompute = Recompute::all;
  EXPECT_EQ(gradient_of(model_, batch_, used, shape, tiny::plenty, &kept), reference);
  EXPECT_EQ(kept, 0);
  shape.recompute = Recompute::automatic;
  EXPECT_EQ(gradient_of(model_, batch_, used, shape, tiny::plenty, &kept), reference);
  EXPECT_EQ(kept, 2);
  shape.recompute = Recompute::none;
  const int64_t all_kept = TrainingPass(model_.transformer, shape, tiny::plenty).bytes();
  shape.recompute = Recompute::automatic;
  EXPECT_EQ(gradient_of(model_, batch_, used, shape, all_kept - 1, &kept), reference);
  EXPECT_EQ(kept, 0);
}

TEST_P(Gradient, AddsUpOverCallsAndChunks) {
  const Adapter adapter = model_.adapter(3);
  const Adapter* used = GetParam().lora ? &adapter : nullptr;
  TrainingShape shape{.max_rows = batch_.rows(), .lora_rank = 3};
  int64_t kept = 0;
  const std::vector<float> reference = gradient_of(model_, batch_, used, shape, tiny::plenty, &kept);
  shape.logit_bytes = 2 * 37 * 4;  // two rows a chunk
  const std::vector<float> chunked = gradient_of(model_, batch_, used, shape, tiny::plenty, &kept);
  EXPECT_LE(test::relative_error(chunked, reference), test::tolerance(100));

  Adapter adapter_sum = model_.zero_adapter();
  Parameters sum(model_.config, model_.shard, Device::cpu, "gradients");
  const Trainable sums = used != nullptr ? Trainable{.adapter = &adapter_sum} : Trainable{.parameters = &sum};
  const std::vector<TrainingRow> rows = tiny::rows(3, 37, 11);
  const PackedBatch whole = pack(rows, std::vector<int64_t>{0, 1, 2}, 1000, 1000, 1.0F).front();
  TrainingPass pass(model_.transformer, shape, tiny::plenty);
  double loss = 0.0;
  for (const PackedBatch& part : pack(rows, std::vector<int64_t>{0, 1, 2}, 1000, 1, 1.0F)) {
    loss += pass.forward_backward(part, used, sums).loss_sum;
  }
  const std::vector<float> parts = download<float>(used != nullptr ? adapter_sum.flat() : sum.flat());
  EXPECT_LE(test::relative_error(parts, gradient_of(model_, whole, used, shape, tiny::plenty, &kept)),
            test::tolerance(100));
  EXPECT_NEAR(loss, pass.loss_only(whole, used).loss_sum, 1e-5 * loss);
}

INSTANTIATE_TEST_SUITE_P(Models, Gradient,
                         ::testing::Values(Case{false, true, true}, Case{true, false, true},
                                           Case{false, true, false}, Case{true, false, false}),
                         [](const auto& test) {
                           return std::string(test.param.qwen2 ? "qwen2" : "llama") +
                                  (test.param.tied ? "Tied" : "Untied") + (test.param.lora ? "Lora" : "Full");
                         });

class TrainingPassTest : public ::testing::Test {
 protected:
  std::unique_ptr<Communicator> alone_ = make_local_communicator();
  tiny::Model model_{tiny::config(true, true), *alone_, /*room=*/false};
  PackedBatch batch_ = tiny::batch(tiny::rows(3, 37, 11));
};

TEST_F(TrainingPassTest, ScoresWithLittleMemory) {
  TrainingPass full(model_.transformer, {.max_rows = 100}, tiny::plenty);
  TrainingPass small(model_.transformer, {.max_rows = 100, .gradients = false}, tiny::plenty);
  EXPECT_LT(small.bytes(), full.bytes());
  const std::vector<double> scores = small.log_probabilities(batch_, nullptr);
  EXPECT_EQ(scores, full.log_probabilities(batch_, nullptr));
  double loss = 0.0;
  size_t next = 0;
  for (size_t row = 0; row < batch_.targets.size(); ++row) {
    if (batch_.targets[row] >= 0) loss -= static_cast<double>(batch_.weights[row]) * scores.at(next++);
  }
  EXPECT_EQ(next, scores.size());
  const LossSums sums = small.loss_only(batch_, nullptr);
  EXPECT_NEAR(sums.loss_sum, loss, 1e-12 * loss);  // compilers fuse multiplications and additions differently
  EXPECT_EQ(sums.target_rows, static_cast<int64_t>(scores.size()));
}

TEST_F(TrainingPassTest, GivesProbabilitiesThatSumToOne) {
  PackedBatch one{.tokens = {3, 5}, .offsets = {0, 2}, .targets = {-1, 0}, .weights = {0.0F, 1.0F}};
  TrainingPass pass(model_.transformer, {.max_rows = 2, .gradients = false}, tiny::plenty);
  double sum = 0.0;
  for (int32_t token = 0; token < 37; ++token) {
    one.targets[1] = token;
    sum += std::exp(pass.log_probabilities(one, nullptr).at(0));
  }
  EXPECT_NEAR(sum, 1.0, 1e-5);
}

TEST_F(TrainingPassTest, KeepsSequencesApart) {
  const std::vector<TrainingRow> rows = tiny::rows(3, 37, 11);
  TrainingPass pass(model_.transformer, {.max_rows = 100, .gradients = false}, tiny::plenty);
  const std::vector<double> together =
      pass.log_probabilities(pack(rows, std::vector<int64_t>{0, 1, 2}, 1000, 1000, 1.0F).front(), nullptr);
  std::vector<double> apart;
  for (const PackedBatch& part : pack(rows, std::vector<int64_t>{0, 1, 2}, 1000, 1, 1.0F)) {
    for (const double score : pass.log_probabilities(part, nullptr)) apart.push_back(score);
  }
  ASSERT_EQ(together.size(), apart.size());
  for (size_t i = 0; i < apart.size(); ++i) EXPECT_NEAR(together[i], apart[i], 1e-5);
}

TEST_F(TrainingPassTest, NamesTheMemoryItLacks) {
  try {
    TrainingPass(model_.transformer, {.max_rows = 1000}, 1 << 20);
    FAIL() << "a budget too small was accepted";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("1000 tokens"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("1 MiB"), std::string::npos) << error.what();
  }
  EXPECT_THROW(TrainingPass(model_.transformer, {.max_rows = 1000, .recompute = Recompute::none}, -5),
               InputError);
}

TEST_F(TrainingPassTest, RefusesABatchThatIsTooLargeOrInconsistent) {
  TrainingPass pass(model_.transformer, {.max_rows = batch_.rows() - 1}, tiny::plenty);
  EXPECT_THROW(pass.loss_only(batch_, nullptr), BugError);
  PackedBatch bad = batch_;
  bad.targets.pop_back();
  TrainingPass enough(model_.transformer, {.max_rows = batch_.rows()}, tiny::plenty);
  EXPECT_THROW(enough.loss_only(bad, nullptr), BugError);
  const Adapter adapter = model_.adapter(1);
  EXPECT_THROW(enough.loss_only(batch_, &adapter), BugError);
}

}  // namespace
}  // namespace sl
