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
  EXPECT_EQ(expect_beams(model, folder + "/beams.jsonl"), 6);
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

// An adapter that PEFT trained, served through pages behind another of its kind, gives the figures of the
// training pass, which is compared with PEFT's own in tests/train.
TEST_P(TensorParallel, ServedAdaptersGiveTheFiguresOfTraining) {
  const std::string folder = reference("peft/" + GetParam());
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no adapter of PEFT for this model";
  const LoraShape shape = read_lora_shape(folder + "/final");
  const Groups groups = make_groups(test_session(), {1, test_session().size()});
  const LoadedModel model(open_model(reference("models/" + GetParam())), {}, *groups.tensor,
                          ServedAdapters::room_for(std::vector{shape, shape}));
  const Adapter initial = model.adapter_from(folder + "/initial");
  const Adapter final = model.adapter_from(folder + "/final");
  int64_t compared = 0;
  for (const JsonRow& row : read_json_lines(reference("models/" + GetParam() + "/logprobs.jsonl"))) {
    const auto tokens = row.value.at("tokens").get<std::vector<int32_t>>();
    const auto expected = packed_log_probabilities(model, tokens, &final);
    EXPECT_LE(largest_difference(paged_log_probabilities(model, tokens, 37, {&initial, &final}), expected),
              1e-4);
    EXPECT_GT(largest_difference(packed_log_probabilities(model, tokens), expected), 1e-3) << "no difference";
    compared += static_cast<int64_t>(expected.size());
  }
  EXPECT_GT(compared, 400);
}

INSTANTIATE_TEST_SUITE_P(, TensorParallel, testing::Values("qwen2", "llama31", "tied", "yarn"));

}  // namespace
}  // namespace sl::test
