// Too little memory, and numbers that are not finite.
#include <gtest/gtest.h>

#include "launch.hpp"

namespace sl::test {
namespace {

// Sequences give their pages up and are computed again; layers are computed a second time. Slower, the same.
TEST(Scarce, MemoryChangesNoResult) {
  const ScratchFolder scratch;
  const std::string plenty = scratch / "plenty", scarce = scratch / "scarce", none = scratch / "none";
  ASSERT_EQ(run_job(2, tiny_run(plenty)).status, 0);
  const Ended ended = run_job(2, tiny_run(scarce, {"--kv-memory", "1", "--page-tokens", "64",
                                                   "--max-sequences", "64", "--activation-memory", "3"}));
  ASSERT_EQ(ended.status, 0) << ended.err;
  expect_same_results(scarce, plenty);
  const Ended refused = run_job(2, tiny_run(none, {"--activation-memory", "1"}));
  EXPECT_EQ(refused.status, 2) << refused.err;
  EXPECT_NE(refused.err.find("MiB of activations, of which 1 MiB are free; lower the cut-off"),
            std::string::npos)
      << refused.err;
}

// Steps whose loss is not finite are skipped and say so in the metrics; ten in a row end the run.
TEST(Scarce, LossesThatAreNotFinite) {
  const ScratchFolder scratch;
  const std::string out = scratch / "run";
  const Ended ended = run_job(2, tiny_run(out, {"--learning-rate", "1e30", "--epochs", "40"}));
  EXPECT_EQ(ended.status, 2) << ended.err;
  EXPECT_NE(ended.err.find("has not been finite for 10 steps in a row; lower the learning rate"),
            std::string::npos)
      << ended.err;
  EXPECT_EQ(state_of(out), "failed");
  int skipped = 0;
  std::ifstream rows(out + "/metrics.jsonl");
  for (std::string line; std::getline(rows, line);) {
    const auto row = nlohmann::json::parse(line);
    if (row.at("stage") == "training" && row.at("skipped").get<bool>()) ++skipped;
  }
  EXPECT_EQ(skipped, 9);  // the tenth ends it
}

}  // namespace
}  // namespace sl::test
