// The model shared between ranks, on every device, against one rank and against Transformers.
#include "tests/model/reference.hpp"
#include "tests/on_ranks.hpp"

namespace sl::test {
namespace {

struct Figures {
  std::vector<double> ours, expected;
};

class SharedModel : public OnRanks {
 protected:
  static constexpr const char* models[] = {"qwen2", "llama31", "tied"};

  // Log-probabilities of all recorded texts, through pages or packed, and Transformers'.
  static Figures figures_of(const LoadedModel& model, const std::string& folder, bool paged) {
    Figures figures;
    for (const JsonRow& row : read_json_lines(folder + "/logprobs.jsonl")) {
      const auto tokens = row.value.at("tokens").get<std::vector<int32_t>>();
      const std::vector<double> ours =
          paged ? paged_log_probabilities(model, tokens, 37) : packed_log_probabilities(model, tokens);
      const auto expected = row.value.at("logprobs").get<std::vector<double>>();
      figures.ours.insert(figures.ours.end(), ours.begin(), ours.end());
      figures.expected.insert(figures.expected.end(), expected.begin(), expected.end());
    }
    return figures;
  }
};

// As exact as one rank: in f32 by the rule of the recorded figures, in bf16 with no more than twice the error
// that one rank has.
TEST_P(SharedModel, LogProbabilitiesAreAsExactAsThoseOfOneRank) {
  const auto alone = make_local_communicator();
  const auto group = world();
  for (const char* const name : models) {
    const std::string folder = reference(std::string("models/") + name);
    const LoadedModel whole(open_model(folder), context(), *alone);
    const LoadedModel shared(open_model(folder), context(), *group);
    for (const bool paged : {true, false}) {
      const Figures one = figures_of(whole, folder, paged), all = figures_of(shared, folder, paged);
      ASSERT_GT(all.ours.size(), 400U);
      const std::string where =
          std::string(name) + (paged ? ", pages" : ", packed") + " through " + way_of(*group);
      if (storage() == DType::f32) {
        EXPECT_LE(largest_difference(all.ours, all.expected), 1e-4) << where;
        EXPECT_LE(relative_error(all.ours, one.ours), tolerance(1000)) << where;
      } else {
        const double error = relative_error(one.ours, one.expected);
        EXPECT_GT(error, 0.0) << where;
        EXPECT_LE(relative_error(all.ours, all.expected), 2.0 * error) << where;
        EXPECT_LE(relative_error(all.ours, one.ours), 2.0 * error) << where;
      }
    }
  }
}

// The engine: recorded steps, tokens one step late, every rank the same draws.
TEST_P(SharedModel, GreedyContinuationsAreThoseOfTransformers) {
  if (storage() != DType::f32) GTEST_SKIP() << "roundings to bf16 part texts";
  const auto group = world();
  for (const char* const name : models) {
    const std::string folder = reference(std::string("models/") + name);
    const LoadedModel shared(open_model(folder), context(), *group);
    EXPECT_EQ(expect_greedy(shared, folder + "/greedy.jsonl"), 5) << name;
  }
}

TEST_P(SharedModel, BeamSearchesAreThoseOfTransformers) {
  if (storage() != DType::f32) GTEST_SKIP() << "roundings to bf16 part texts";
  const auto group = world();
  for (const char* const name : models) {
    const std::string folder = reference(std::string("models/") + name);
    const LoadedModel shared(open_model(folder), context(), *group);
    EXPECT_EQ(expect_beams(shared, folder + "/beams.jsonl"), 6) << name;
  }
}

SL_ON_DEVICES(SharedModel);

}  // namespace
}  // namespace sl::test
