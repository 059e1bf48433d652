// Training on every process grid of the ranks at hand against one rank, on every device.
#include "tests/on_ranks.hpp"
#include "tests/train/placed.hpp"

namespace sl {
namespace {

using namespace placed;
using test::name_of;
using test::places;

// Heads that 2 and 4 ranks share; 4 ranks hold each key-value head twice.
ModelConfig shared_config(bool qwen2) {
  ModelConfig c = small_config(qwen2);
  c.heads = 8;
  c.key_heads = 2;
  c.head_dim = 64;
  return c;
}

struct Steps {
  std::vector<double> losses, norms;
};

class TrainingOnRanks : public test::OnRanks {
 protected:
  Steps steps(bool qwen2, bool lora, Communicator& tensor_parallel, Communicator& data_parallel) const {
    Placed model(context(), shared_config(qwen2), tensor_parallel, lora);
    TrainingOptions options = options_of(lora);
    options.epochs = 1;
    options.activation_bytes = tiny::plenty;
    Trainer trainer(model.transformer, model.trained(lora), long_rows(18, 4), options, data_parallel);
    Steps result;
    while (trainer.step()) {
      result.losses.push_back(trainer.last().loss);
      result.norms.push_back(trainer.last().grad_norm);
    }
    return result;
  }
};

TEST_P(TrainingOnRanks, IsThatOfOneRank) {
  const auto alone = make_local_communicator();
  const bool rounded = storage() == DType::bf16;
  for (const bool qwen2 : {false, true}) {
    for (const bool lora : {true, false}) {
      const Steps expected = steps(qwen2, lora, *alone, *alone);
      ASSERT_EQ(expected.losses.size(), 3U);
      for (const Grid& grid : grids()) {
        const Groups ranks = groups(grid);
        const Steps found = steps(qwen2, lora, *ranks.tensor, *ranks.data);
        const std::string where =
            test::describe(grid) + (qwen2 ? ", qwen2" : ", llama") + (lora ? ", lora" : ", full");
        EXPECT_LE(test::relative_error(found.losses, expected.losses), rounded ? 2e-3 : 1e-5) << where;
        EXPECT_LE(test::relative_error(found.norms, expected.norms), rounded ? 2e-2 : 1e-4) << where;
        // All ranks have the same figures.
        for (const double loss : found.losses) {
          double sum = loss;
          ranks.world->all_reduce_sum(std::span(&sum, 1));
          EXPECT_DOUBLE_EQ(sum, loss * test_session().size()) << where;
        }
      }
    }
  }
}

SL_ON_DEVICES(TrainingOnRanks);

}  // namespace
}  // namespace sl
