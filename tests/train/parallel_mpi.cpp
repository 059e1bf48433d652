// Training on every process grid of the ranks at hand against one rank alone.
#include "core/error.hpp"
#include "tests/mpi_main.hpp"
#include "tests/support.hpp"
#include "tests/train/tiny.hpp"
#include "train/trainer.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace sl {
namespace {

std::vector<Grid> grids() {
  std::vector<Grid> all;
  for (int tp = 1; tp <= test_session().size(); tp *= 2) all.push_back(grid_of(test_session().size(), tp));
  return all;
}

std::string describe(const Grid& grid) {
  return "dp " + std::to_string(grid.dp) + ", tp " + std::to_string(grid.tp);
}

struct Form {
  bool qwen2, tied;
  Finetune finetune;
};
const std::vector<Form> forms = {{false, true, Finetune::lora},
                                 {true, false, Finetune::lora},
                                 {false, true, Finetune::full},
                                 {true, false, Finetune::full}};

// One path for all ranks, in a folder of this run of the tests.
std::string shared_path(Communicator& world, const std::string& name) {
  int64_t process = getpid();
  world.broadcast(std::as_writable_bytes(std::span(&process, 1)), 0);
  return std::filesystem::temp_directory_path() / ("selflengthen_" + std::to_string(process) + "_" + name);
}

// A model with an adapter, and which of them is trained.
struct Trained {
  Trained(const Form& form, Communicator& tensor_parallel)
      : model(tiny::config(form.qwen2, form.tied), tensor_parallel, form.finetune == Finetune::lora),
        adapter(model.adapter(5)),
        lora(form.finetune == Finetune::lora) {}
  Trainable trainable() {
    return lora ? Trainable{.adapter = &adapter} : Trainable{.parameters = &model.parameters};
  }

  tiny::Model model;
  Adapter adapter;
  bool lora;
};

// Every tensor whole, on rank 0 of the group; collective over it.
std::vector<std::vector<float>> whole(const Trainable& trainable, Communicator& tensor_parallel) {
  std::vector<std::vector<float>> all;
  for (const ShardedTensor& tensor : trainable.tensors())
    all.push_back(gather_whole(tensor, tensor_parallel));
  return all;
}

void expect_close(const std::vector<std::vector<float>>& actual,
                  const std::vector<std::vector<float>>& expected, const Trainable& names, double tolerance,
                  const std::string& where) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_LE(test::relative_error(actual[i], expected[i]), tolerance)
        << names.tensors()[i].name << ", " << where;
  }
}

struct Gradients {
  LossSums sums;
  std::vector<double> scores;
  double norm;
  std::vector<std::vector<float>> tensors;
};

Gradients gradients_of(const Form& form, Communicator& tensor_parallel) {
  Trained trained(form, tensor_parallel);
  const auto nobody = make_local_communicator();
  Optimizer optimizer(trained.model.transformer, trained.trainable(), 0.0, *nobody);
  const PackedBatch batch = tiny::batch(tiny::rows(5, 37, 31));
  // Small chunks, so that the head makes several.
  TrainingPass pass(trained.model.transformer,
                    {.max_rows = batch.rows(), .lora_rank = 3, .logit_bytes = 1500}, tiny::plenty);
  const Adapter* adapter = trained.lora ? &trained.adapter : nullptr;
  Gradients result;
  result.scores = pass.log_probabilities(batch, adapter);
  result.sums = pass.forward_backward(batch, adapter, optimizer.gradient());
  pass.forward_backward(batch, adapter, optimizer.gradient());
  pass.finish_gradients(optimizer.gradient());
  result.norm = optimizer.gradient_norm();
  result.tensors = whole(optimizer.gradient(), tensor_parallel);
  return result;
}

TEST(TensorParallel, HasTheGradientsOfOneRank) {
  const auto alone = make_local_communicator();
  for (const Grid& grid : grids()) {
    const Groups groups = make_groups(test_session(), grid);
    for (const Form& form : forms) {
      const Gradients expected = gradients_of(form, *alone);
      const Gradients found = gradients_of(form, *groups.tensor);
      EXPECT_NEAR(found.sums.loss_sum, expected.sums.loss_sum, 1e-5 * expected.sums.loss_sum);
      EXPECT_EQ(found.sums.target_rows, expected.sums.target_rows);
      EXPECT_LE(test::relative_error(found.scores, expected.scores), 1e-5) << describe(grid);
      EXPECT_NEAR(found.norm, expected.norm, 1e-5 * expected.norm) << describe(grid);
      if (groups.tensor->rank() == 0) {
        Trained names(form, *alone);
        expect_close(found.tensors, expected.tensors, names.trainable(), test::tolerance(1000),
                     describe(grid));
      }
    }
  }
}

TrainingOptions options(const Form& form) {
  TrainingOptions options;
  options.finetune = form.finetune;
  options.epochs = 2;
  options.learning_rate = 3e-3;
  options.batch_sequences = 5;  // 13 rows: shares of replicas differ, and the last step leaves some without
  options.pass_tokens = 12;
  options.activation_bytes = tiny::plenty;
  return options;
}

std::vector<TrainingRow> training_rows() {
  std::vector<TrainingRow> rows = tiny::rows(11, 37, 41);
  rows[4].mask.assign(rows[4].mask.size(), 0);
  return rows;
}

struct Training {
  std::vector<double> losses, norms;
  std::vector<std::vector<float>> tensors;
};

// Trains to the end, from a checkpoint when `from` is given; leaves that of step 2 at `save`, which
// is written while the training goes on. `world`: all ranks of the training.
Training train(const Form& form, Communicator& tensor_parallel, Communicator& data_parallel,
               Communicator& world, const std::string& from, const std::string& save) {
  Trained trained(form, tensor_parallel);
  Trainer trainer(trained.model.transformer, trained.trainable(), training_rows(), options(form),
                  data_parallel);
  if (!from.empty()) trainer.load_checkpoint(from);
  TrainingCheckpoint checkpoint(trainer, save, world);
  Training result;
  while (trainer.step()) {
    result.losses.push_back(trainer.last().loss);
    result.norms.push_back(trainer.last().grad_norm);
    if (!save.empty() && trainer.state().step == 2) checkpoint.save();
  }
  while (!checkpoint.poll()) {
  }
  result.tensors = whole(trained.trainable(), tensor_parallel);
  return result;
}

Training train(const Form& form, const Groups& groups, const std::string& from, const std::string& save) {
  return train(form, *groups.tensor, *groups.data, *groups.world, from, save);
}

Training train_alone(const Form& form, const std::string& from, const std::string& save) {
  const auto alone = make_local_communicator();
  return train(form, *alone, *alone, *alone, from, save);
}

TEST(ProcessGrid, TrainsLikeOneRank) {
  const auto alone = make_local_communicator();
  for (const Grid& grid : grids()) {
    const Groups groups = make_groups(test_session(), grid);
    for (const Form& form : forms) {
      const Training expected = train_alone(form, "", "");
      const Training found = train(form, groups, "", "");
      ASSERT_EQ(found.losses.size(), 6U);
      EXPECT_LE(test::relative_error(found.losses, expected.losses), 1e-4) << describe(grid);
      EXPECT_LE(test::relative_error(found.norms, expected.norms), 1e-3) << describe(grid);
      if (groups.tensor->rank() == 0) {
        Trained names(form, *alone);
        expect_close(found.tensors, expected.tensors, names.trainable(), 1e-3, describe(grid));
      }
    }
  }
}

TEST(ProcessGrid, IsExactlyTheSameTwice) {
  for (const Grid& grid : grids()) {
    const Groups groups = make_groups(test_session(), grid);
    const Training one = train(forms[1], groups, "", "");
    const Training two = train(forms[1], groups, "", "");
    EXPECT_EQ(one.losses, two.losses) << describe(grid);
    EXPECT_EQ(one.tensors, two.tensors) << describe(grid);
  }
}

TEST(ProcessGrid, ContinuesTheTrainingOfAnotherGrid) {
  const auto alone = make_local_communicator();
  for (const Grid& grid : grids()) {
    const Groups groups = make_groups(test_session(), grid);
    const std::string path = shared_path(*groups.world, "grid.h5");
    for (const Form& form : {forms[1], forms[2]}) {
      // From this grid to the same one, bit for bit, and to one rank; then from one rank to this grid.
      const Training whole_run = train(form, groups, "", path);
      groups.world->barrier();
      const Training same_grid = train(form, groups, path, "");
      EXPECT_EQ(same_grid.tensors, whole_run.tensors) << describe(grid);
      const Training one_rank = train_alone(form, path, "");
      groups.world->barrier();
      if (groups.world->rank() == 0) train_alone(form, "", path);
      groups.world->barrier();
      const Training this_grid = train(form, groups, path, "");
      groups.world->barrier();
      if (groups.world->rank() == 0) remove_checkpoint(path);
      ASSERT_EQ(one_rank.losses.size(), 4U);
      ASSERT_EQ(this_grid.losses.size(), 4U);
      if (groups.tensor->rank() == 0) {
        Trained names(form, *alone);
        expect_close(this_grid.tensors, one_rank.tensors, names.trainable(), 1e-3, describe(grid));
        expect_close(one_rank.tensors, whole_run.tensors, names.trainable(), 1e-3, describe(grid));
      }
    }
  }
}

// The first ranks as a grid; the others, if any, wait elsewhere.
struct SomeRanks {
  explicit SomeRanks(const Grid& grid) {
    const int rank = test_session().rank(), none = test_session().size();
    takes_part = rank < grid.dp * grid.tp;
    tensor = test_session().split(takes_part ? rank / grid.tp : none);
    data = test_session().split(takes_part ? rank % grid.tp : none);
    world = test_session().split(takes_part ? 0 : none);
  }
  bool takes_part;
  std::unique_ptr<Communicator> tensor, data, world;
};

// The numbers of a checkpoint read on another grid are those that were written, to the bit: saved there,
// every tensor of the state is the same. And training goes on with the same losses, up to the order of sums.
TEST(ProcessGrid, CheckpointsGoFromAnyGridToAnyOther) {
  const auto session = test_session().world();
  const std::string first = shared_path(*session, "first.h5"), second = shared_path(*session, "second.h5");
  constexpr std::pair<Grid, Grid> ways[] = {{{2, 1}, {4, 1}}, {{2, 1}, {1, 2}}, {{1, 2}, {1, 1}},
                                            {{1, 1}, {2, 1}}, {{4, 1}, {2, 2}}, {{2, 2}, {1, 4}},
                                            {{1, 4}, {4, 1}}};
  for (const auto& [from, to] : ways) {
    const int size = test_session().size();
    if (from.dp * from.tp > size || to.dp * to.tp > size) continue;
    const SomeRanks before(from), after(to);
    for (const Form& form : {forms[1], forms[2], forms[3]}) {
      const std::string where = describe(from) + " to " + describe(to);
      Training expected, found;
      if (before.takes_part) expected = train(form, *before.tensor, *before.data, *before.world, "", first);
      session->barrier();
      if (after.takes_part) {
        found = train(form, *after.tensor, *after.data, *after.world, first, "");
        Trained trained(form, *after.tensor);
        Trainer trainer(trained.model.transformer, trained.trainable(), training_rows(), options(form),
                        *after.data);
        trainer.load_checkpoint(first);
        tiny::save_checkpoint(trainer, second, *after.world);
      }
      session->barrier();
      if (session->rank() == 0) {
        const CheckpointFile one(first), two(second);
        EXPECT_EQ(one.index().integers, two.index().integers) << where;
        ASSERT_EQ(one.shapes(), two.shapes()) << where;
        for (const auto& [name, shape] : one.shapes())
          EXPECT_TRUE(one.read(name) == two.read(name)) << name << ", " << where;
        ASSERT_EQ(expected.losses.size(), 6U);
        expected.losses.erase(expected.losses.begin(), expected.losses.begin() + 2);
        EXPECT_LE(test::relative_error(found.losses, expected.losses), 1e-4) << where;
        remove_checkpoint(first);
        remove_checkpoint(second);
      }
      session->barrier();
    }
  }
}

// A rank may be at its next part while rank 0 still writes the index of those before: it keeps it.
TEST(ProcessGrid, CheckpointsThatFollowEachOtherAreWhole) {
  for (const Grid& grid : grids()) {
    const Groups groups = make_groups(test_session(), grid);
    const std::string path = shared_path(*groups.world, "often.h5");
    Trained trained(forms[2], *groups.tensor);
    TrainingOptions chosen = options(forms[2]);
    chosen.epochs = 10;
    Trainer trainer(trained.model.transformer, trained.trainable(), training_rows(), chosen, *groups.data);
    TrainingCheckpoint checkpoint(trainer, path, *groups.world);
    while (trainer.step()) {
      checkpoint.save();
      if (!trainer.step()) break;
      checkpoint.finish();
      if (groups.world->rank() == 0) {
        EXPECT_TRUE(holds_checkpoint(path));
        EXPECT_EQ(CheckpointFile(path).index().integers.at("step"), trainer.state().step);
      }
      groups.world->barrier();
    }
    checkpoint.remove();
  }
}

// Weights trained in a form of their own, as where the model is stored as bf16: nothing changes, and the form
// has them in the end. Several replicas hold a share of the optimizer's state each.
TEST(ProcessGrid, TrainsWeightsInAFormOfTheirOwn) {
  for (const Grid& grid : grids()) {
    const Groups groups = make_groups(test_session(), grid);
    const Form form = forms[2];
    ASSERT_EQ(form.finetune, Finetune::full);
    TrainingOptions chosen = options(form);
    chosen.weight_decay = 0.1;
    const auto trained = [&](bool own_form) {
      Trained model(form, *groups.tensor);
      Trained other(form, *groups.tensor);
      const Trainable exact = own_form ? other.trainable() : model.trainable();
      Trainer trainer(model.model.transformer, exact, training_rows(), chosen, *groups.data);
      while (trainer.step()) {
      }
      trainer.collect();
      EXPECT_EQ(download<float>(exact.parameters->flat()), download<float>(model.model.parameters.flat()));
      return whole(exact, *groups.tensor);
    };
    EXPECT_EQ(trained(true), trained(false)) << describe(grid);
  }
}

// The training of a replica that has no row still takes part in every step.
TEST(ProcessGrid, LeavesReplicasWithoutARow) {
  const auto alone = make_local_communicator();
  const Groups groups = make_groups(test_session(), grid_of(test_session().size(), 1));
  const Form form = forms[0];
  const auto losses = [&](Communicator& data_parallel) {
    Trained trained(form, *alone);
    TrainingOptions chosen = options(form);
    chosen.batch_sequences = 1;
    Trainer trainer(trained.model.transformer, trained.trainable(), training_rows(), chosen, data_parallel);
    std::vector<double> all;
    while (trainer.step()) all.push_back(trainer.last().loss);
    return all;
  };
  const std::vector<double> found = losses(*groups.data);
  EXPECT_EQ(found.size(), 22U);
  EXPECT_LE(test::relative_error(found, losses(*alone)), 1e-4);
}

}  // namespace
}  // namespace sl
