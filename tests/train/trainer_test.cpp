#include "train/trainer.hpp"

#include "core/error.hpp"
#include "io/checkpoint.hpp"
#include "tests/support.hpp"
#include "tests/train/tiny.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

namespace sl {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() : folder_(std::filesystem::temp_directory_path() / unique_name()) {
    std::filesystem::create_directories(folder_);
  }
  ~TrainerTest() override { std::filesystem::remove_all(folder_); }

  static std::string unique_name() {
    return std::string("selflengthen_trainer_") +
           ::testing::UnitTest::GetInstance()->current_test_info()->name();
  }

  static TrainingOptions options() {
    TrainingOptions options;
    options.epochs = 2;
    options.learning_rate = 1e-2;
    options.batch_sequences = 3;
    options.activation_bytes = tiny::plenty;
    return options;
  }

  std::vector<StepRecord> train(Trainer& trainer) {
    std::vector<StepRecord> records;
    while (trainer.step()) records.push_back(trainer.last());
    return records;
  }

  std::filesystem::path folder_;
  std::unique_ptr<Communicator> alone_ = make_local_communicator();
  tiny::Model model_{tiny::config(true, true), *alone_, /*room=*/true};
  std::vector<TrainingRow> rows_ = tiny::rows(7, 37, 21);
};

TEST_F(TrainerTest, StepsThroughEveryEpochToTheLastPartialStep) {
  Adapter adapter = model_.adapter(1);
  Trainer trainer(model_.transformer, {.adapter = &adapter}, rows_, options(), *alone_);
  EXPECT_EQ(trainer.total_steps(), 6);
  const std::vector<StepRecord> records = train(trainer);
  ASSERT_EQ(records.size(), 6U);
  int64_t tokens = 0;
  for (const TrainingRow& row : rows_) tokens += packed_rows(row, 16384);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(records[i].step, static_cast<int64_t>(i) + 1);
    EXPECT_EQ(records[i].epoch, i < 3 ? 1 : 2);
    EXPECT_GT(records[i].loss, 0.0);
    EXPECT_GT(records[i].grad_norm, 0.0);
    EXPECT_GT(records[i].tokens_per_second, 0.0);
    EXPECT_FALSE(records[i].skipped);
  }
  EXPECT_EQ(records[0].tokens + records[1].tokens + records[2].tokens, tokens);
  EXPECT_EQ(records[3].tokens + records[4].tokens + records[5].tokens, tokens);
  EXPECT_EQ(records[0].learning_rate, 0.0);  // warm-up of one step
  EXPECT_EQ(records[1].learning_rate, 1e-2);
  EXPECT_EQ(trainer.state().updates, 6);
}

TEST_F(TrainerTest, LowersTheLoss) {
  for (const Finetune finetune : {Finetune::lora, Finetune::full}) {
    tiny::Model model(tiny::config(true, true), *alone_, finetune == Finetune::lora);
    Adapter adapter = model.adapter(1);
    TrainingOptions chosen = options();
    chosen.finetune = finetune;
    chosen.epochs = 20;
    const Trainable trained = finetune == Finetune::lora ? Trainable{.adapter = &adapter}
                                                         : Trainable{.parameters = &model.parameters};
    Trainer trainer(model.transformer, trained, rows_, chosen, *alone_);
    const std::vector<StepRecord> records = train(trainer);
    EXPECT_LT(records.back().loss, 0.5 * records.front().loss);
  }
}

// On the debug device host code that touches device memory crashes.
TEST_F(TrainerTest, KeepsHostAndDeviceApart) {
  for (const Finetune finetune : {Finetune::lora, Finetune::full}) {
    std::vector<std::vector<float>> trained;
    for (const Device device : {Device::cpu, Device::debug}) {
      tiny::Model model(tiny::config(true, false), *alone_, finetune == Finetune::lora, device);
      Adapter adapter = model.adapter(1);
      TrainingOptions chosen = options();
      chosen.finetune = finetune;
      chosen.recompute = Recompute::all;
      const bool lora = finetune == Finetune::lora;
      Trainer trainer(model.transformer,
                      lora ? Trainable{.adapter = &adapter} : Trainable{.parameters = &model.parameters},
                      rows_, chosen, *alone_);
      trainer.step();
      tiny::save_checkpoint(trainer, folder_ / "state.h5", *alone_);
      trainer.load_checkpoint(folder_ / "state.h5");
      train(trainer);
      trained.push_back(download<float>(lora ? adapter.flat() : model.parameters.flat()));
    }
    EXPECT_EQ(trained[0], trained[1]);
  }
}

TEST_F(TrainerTest, ScalesALongGradientDown) {
  TrainingOptions chosen = options();
  chosen.warmup_ratio = 0.0;
  const auto first_step = [&](double limit) {
    Adapter trained = model_.adapter(1);
    chosen.max_grad_norm = limit;
    Trainer trainer(model_.transformer, {.adapter = &trained}, rows_, chosen, *alone_);
    trainer.step();
    tiny::save_checkpoint(trainer, folder_ / "state.h5", *alone_);
    const CheckpointFile state(folder_ / "state.h5");
    std::vector<float> moments;
    for (const auto& [name, shape] : state.shapes()) {
      if (!name.starts_with("first_moment/")) continue;
      const std::vector<float> values = state.read(name);
      moments.insert(moments.end(), values.begin(), values.end());
    }
    return std::pair(trainer.last().grad_norm, moments);
  };
  const auto [norm, free_moments] = first_step(0.0);
  auto [same_norm, limited_moments] = first_step(0.25 * norm);
  EXPECT_EQ(norm, same_norm);
  EXPECT_EQ(first_step(2.0 * norm).second, free_moments);
  for (float& moment : limited_moments) moment *= 4.0F;
  EXPECT_LE(test::relative_error(limited_moments, free_moments), 1e-5);
}

TEST_F(TrainerTest, ShufflesByAddressAndDividesEachEpoch) {
  const auto losses = [&](uint64_t seed, bool shuffle) {
    Adapter adapter = model_.adapter(1);
    TrainingOptions chosen = options();
    chosen.learning_rate = 0.0;
    chosen.batch_sequences = 1;
    chosen.seed = seed;
    chosen.shuffle = shuffle;
    Trainer trainer(model_.transformer, {.adapter = &adapter}, rows_, chosen, *alone_);
    std::vector<double> all;
    for (const StepRecord& record : train(trainer)) all.push_back(record.loss);
    return all;
  };
  const std::vector<double> in_order = losses(1, false);
  const std::vector<double> shuffled = losses(1, true);
  EXPECT_EQ(losses(1, true), shuffled);
  EXPECT_NE(losses(2, true), shuffled);
  EXPECT_NE(shuffled, in_order);
  const std::vector<double> first(in_order.begin(), in_order.begin() + 7);
  EXPECT_EQ(std::vector<double>(in_order.begin() + 7, in_order.end()), first);
  const std::vector<double> one(shuffled.begin(), shuffled.begin() + 7);
  const std::vector<double> two(shuffled.begin() + 7, shuffled.end());
  EXPECT_NE(one, two);
  EXPECT_THAT(one, ::testing::UnorderedElementsAreArray(first));
  EXPECT_THAT(two, ::testing::UnorderedElementsAreArray(first));
}

TEST_F(TrainerTest, PacksOrNotWithTheSameResult) {
  std::vector<std::vector<float>> trained;
  for (const int64_t pass_tokens : {0, 1000}) {
    Adapter adapter = model_.adapter(1);
    TrainingOptions chosen = options();
    chosen.pass_tokens = pass_tokens;
    Trainer trainer(model_.transformer, {.adapter = &adapter}, rows_, chosen, *alone_);
    train(trainer);
    trained.push_back(download<float>(adapter.flat()));
  }
  EXPECT_LE(test::relative_error(trained[0], trained[1]), 1e-4);
}

TEST_F(TrainerTest, PassesOverRowsWithoutAnythingToLearn) {
  std::vector<TrainingRow> rows = rows_;
  rows.resize(4);
  for (size_t i : {0U, 1U}) rows[i].mask.assign(rows[i].mask.size(), 0);
  Adapter adapter = model_.adapter(1);
  const std::vector<float> before = download<float>(adapter.flat());
  TrainingOptions chosen = options();
  chosen.epochs = 1;
  chosen.warmup_ratio = 0.0;
  chosen.batch_sequences = 2;
  chosen.shuffle = false;
  Trainer trainer(model_.transformer, {.adapter = &adapter}, rows, chosen, *alone_);
  ASSERT_TRUE(trainer.step());
  EXPECT_EQ(trainer.last().tokens, 0);
  EXPECT_EQ(trainer.last().loss, 0.0);
  EXPECT_EQ(download<float>(adapter.flat()), before);
  ASSERT_TRUE(trainer.step());
  EXPECT_GT(trainer.last().loss, 0.0);
  EXPECT_NE(download<float>(adapter.flat()), before);
  EXPECT_EQ(trainer.state().updates, 1);
}

TEST_F(TrainerTest, SkipsWhatIsNotFiniteAndGivesUpAfterTen) {
  Adapter adapter = model_.adapter(1);
  adapter.pair(0, Projection::q).a.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> before = download<float>(adapter.pair(1, Projection::v).b);
  TrainingOptions chosen = options();
  chosen.epochs = 10;
  Trainer trainer(model_.transformer, {.adapter = &adapter}, rows_, chosen, *alone_);
  for (int i = 0; i < 9; ++i) {
    ASSERT_TRUE(trainer.step());
    EXPECT_TRUE(trainer.last().skipped);
  }
  EXPECT_EQ(trainer.state().skipped, 9);
  EXPECT_EQ(trainer.state().updates, 0);
  EXPECT_EQ(download<float>(adapter.pair(1, Projection::v).b), before);
  EXPECT_THAT([&] { trainer.step(); },
              ThrowsMessage<InputError>(::testing::AllOf(HasSubstr("step 10"), HasSubstr("learning rate"))));
}

TEST_F(TrainerTest, AShortTrainingThatEndsNotFiniteHasFailed) {
  Adapter adapter = model_.adapter(1);
  adapter.pair(0, Projection::q).a.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  TrainingOptions chosen = options();
  chosen.epochs = 1;
  Trainer trainer(model_.transformer, {.adapter = &adapter}, rows_, chosen, *alone_);
  ASSERT_LT(trainer.total_steps(), 10);
  for (int64_t i = 1; i < trainer.total_steps(); ++i) ASSERT_TRUE(trainer.step());
  EXPECT_THAT([&] { trainer.step(); }, ThrowsMessage<InputError>(HasSubstr("learning rate")));
}

TEST_F(TrainerTest, ContinuesBitForBit) {
  for (const Finetune finetune : {Finetune::lora, Finetune::full}) {
    TrainingOptions chosen = options();
    chosen.finetune = finetune;
    chosen.weight_decay = 0.1;
    const auto run = [&](bool interrupted) {
      tiny::Model model(tiny::config(true, true), *alone_, finetune == Finetune::lora);
      Adapter adapter = model.adapter(1);
      const auto trained = [&](tiny::Model& m, Adapter& a) {
        return finetune == Finetune::lora ? Trainable{.adapter = &a} : Trainable{.parameters = &m.parameters};
      };
      const auto numbers = [&](const Trainable& t) {
        return download<float>(t.adapter != nullptr ? t.adapter->flat() : t.parameters->flat());
      };
      Trainer trainer(model.transformer, trained(model, adapter), rows_, chosen, *alone_);
      if (!interrupted) {
        train(trainer);
        return std::pair(trainer.last().loss, numbers(trained(model, adapter)));
      }
      for (int i = 0; i < 4; ++i) trainer.step();
      tiny::save_checkpoint(trainer, folder_ / "half.h5", *alone_);
      tiny::Model again(tiny::config(true, true), *alone_, finetune == Finetune::lora);
      Adapter other = again.adapter(2);
      Trainer continued(again.transformer, trained(again, other), rows_, chosen, *alone_);
      continued.load_checkpoint(folder_ / "half.h5");
      EXPECT_EQ(continued.state().step, 4);
      EXPECT_EQ(train(continued).size(), 2U);
      return std::pair(continued.last().loss, numbers(trained(again, other)));
    };
    EXPECT_EQ(run(true), run(false));
  }
}

TEST_F(TrainerTest, RefusesTheCheckpointOfSomethingElse) {
  Adapter adapter = model_.adapter(1);
  const std::string path = folder_ / "state.h5";
  Trainer saved(model_.transformer, {.adapter = &adapter}, rows_, options(), *alone_);
  tiny::save_checkpoint(saved, path, *alone_);
  const auto load_with = [&](const TrainingOptions& chosen, const std::vector<TrainingRow>& rows,
                             Adapter& into, const std::string& file) {
    Trainer(model_.transformer, {.adapter = &into}, rows, chosen, *alone_).load_checkpoint(file);
  };
  EXPECT_NO_THROW(load_with(options(), rows_, adapter, path));
  TrainingOptions other = options();
  other.learning_rate = 0.5;
  EXPECT_THAT([&] { load_with(other, rows_, adapter, path); },
              ThrowsMessage<InputError>(::testing::AllOf(HasSubstr(path), HasSubstr("options"))));
  std::vector<TrainingRow> other_rows = rows_;
  other_rows[2].mask[0] ^= 1;
  EXPECT_THROW(load_with(options(), other_rows, adapter, path), InputError);
  other = options();
  other.batch_sequences = 2;
  EXPECT_THAT([&] { load_with(other, rows_, adapter, path); },
              ThrowsMessage<InputError>(HasSubstr("3 sequences")));
  other.batch_sequences = 0;
  EXPECT_NO_THROW(load_with(other, rows_, adapter, path));
  Adapter larger(model_.config, model_.shard, {.rank = 4, .alpha = 6.0F}, Device::cpu, "adapter");
  EXPECT_THAT([&] { load_with(options(), rows_, larger, path); },
              ThrowsMessage<InputError>(HasSubstr("lora_A.weight")));
  std::ofstream(folder_ / "text.h5") << "no checkpoint";
  EXPECT_THAT([&] { load_with(options(), rows_, adapter, folder_ / "text.h5"); },
              ThrowsMessage<InputError>(HasSubstr("text.h5")));
  write_checkpoint_index(folder_ / "other.h5", {.kind = "x", .integers = {{"step", 1}}, .pieces = {}});
  EXPECT_THAT([&] { load_with(options(), rows_, adapter, folder_ / "other.h5"); },
              ThrowsMessage<InputError>(HasSubstr("other.h5")));
}

TEST_F(TrainerTest, RefusesDataItCannotLearnFrom) {
  Adapter adapter = model_.adapter(1);
  const auto make = [&](const std::vector<TrainingRow>& rows, const TrainingOptions& chosen) {
    Trainer(model_.transformer, {.adapter = &adapter}, rows, chosen, *alone_);
  };
  EXPECT_THAT([&] { make({}, options()); }, ThrowsMessage<InputError>(HasSubstr("no token")));
  std::vector<TrainingRow> rows = rows_;
  rows[3].tokens[1] = 37;
  EXPECT_THAT([&] { make(rows, options()); },
              ThrowsMessage<InputError>(::testing::AllOf(HasSubstr("token 37"), HasSubstr("row 4"))));
  TrainingOptions chosen = options();
  chosen.epochs = 0;
  EXPECT_THAT([&] { make(rows_, chosen); }, ThrowsMessage<InputError>(HasSubstr("epochs")));
  chosen = options();
  chosen.learning_rate = std::nan("");
  EXPECT_THROW(make(rows_, chosen), InputError);
  chosen = options();
  chosen.activation_bytes = 1000;
  EXPECT_THAT([&] { make(rows_, chosen); }, ThrowsMessage<InputError>(HasSubstr("cut-off")));
}

}  // namespace
}  // namespace sl
