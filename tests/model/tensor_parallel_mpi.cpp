// The recorded figures again with every rank holding a part of the model.
#include "tests/model/reference.hpp"
#include "tests/mpi_main.hpp"

namespace sl::test {
namespace {

class TensorParallel : public testing::TestWithParam<std::string> {};

TEST_P(TensorParallel, FiguresAreThoseOfOneRank) {
  const std::string folder = reference("models/" + GetParam());
  const Groups groups = make_groups(test_session(), {1, test_session().size()});
  const LoadedModel model(open_model(folder), {}, *groups.tensor);
  EXPECT_GT(expect_log_probabilities(model, folder + "/logprobs.jsonl", 1e-4), 400);
  EXPECT_EQ(expect_greedy(model, folder + "/greedy.jsonl"), 5);
}

TEST_P(TensorParallel, WholeTensorsComeBackFromTheirShares) {
  const Groups groups = make_groups(test_session(), {1, test_session().size()});
  const LoadedModel model(open_model(reference("models/" + GetParam())), {}, *groups.tensor);
  for (const ShardedTensor& tensor : const_cast<LoadedModel&>(model).parameters().tensors()) {
    const std::vector<float> whole = gather_whole(tensor, *groups.tensor);
    if (groups.tensor->rank() != 0) continue;
    std::vector<float> file(whole.size());
    const bool matrix = tensor.shape.size() == 2;
    model.source().weights->read(tensor.name, {0, matrix ? tensor.shape[0] : 1, 0, tensor.shape.back()},
                                 file.data());
    EXPECT_EQ(whole, file) << tensor.name;
  }
}

INSTANTIATE_TEST_SUITE_P(, TensorParallel, testing::Values("qwen2", "llama31", "tied", "yarn"));

}  // namespace
}  // namespace sl::test
