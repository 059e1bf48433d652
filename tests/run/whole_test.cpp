// A run from the beginning to its end, on several process grids, and once more when it is done.
#include <gtest/gtest.h>

#include "../support.hpp"
#include "launch.hpp"

namespace sl::test {
namespace {

TEST(WholeRun, LeavesEverythingAndDoesNothingTheSecondTime) {
  const ScratchFolder scratch;
  const std::string out = scratch / "run";
  const Ended first = run_job(2, tiny_run(out));
  ASSERT_EQ(first.status, 0) << first.err;
  EXPECT_NE(first.out.find("mean words"), std::string::npos) << first.out;
  EXPECT_EQ(state_of(out), "done");
  const RunFolder folder(out);
  for (int64_t iteration : {1, 2}) {
    for (const char* stage : {"instructions", "initial", "extended", "sft_generator", "sft_extender"})
      EXPECT_GT(read_table(folder.stage_file(iteration, stage)).rows(), 0) << stage;
    for (const char* role : {"generator", "extender"}) {
      EXPECT_TRUE(std::filesystem::exists(folder.adapter(iteration, role) + "/adapter_config.json"));
      EXPECT_TRUE(std::filesystem::exists(folder.adapter(iteration, role) + "/adapter_model.safetensors"));
    }
    const Table initial = read_table(folder.stage_file(iteration, "initial"));
    const Table extended = read_table(folder.stage_file(iteration, "extended"));
    for (size_t row = 0; row < static_cast<size_t>(extended.rows()); ++row) {
      const auto from = static_cast<size_t>(extended.integers("initial_row")[row]);
      EXPECT_EQ(initial.integers("kept")[from], 1);
      EXPECT_EQ(initial.texts("response")[from], extended.texts("initial")[row]);
      EXPECT_GT(extended.integers("words")[row], initial.integers("words")[from]);
    }
  }
  for (const auto& [name, bytes] : results_of(out)) {
    EXPECT_EQ(name.find(".partial"), std::string::npos) << name;
    EXPECT_EQ(name.find("journal/"), std::string::npos) << name;
    EXPECT_EQ(name.find("checkpoint/"), std::string::npos) << name;
  }
  const auto before = results_of(out);
  const std::string metrics = read_bytes(folder.metrics());
  const Ended second = run_job(2, tiny_run(out));
  EXPECT_EQ(second.status, 0) << second.err;
  EXPECT_EQ(second.out, first.out);
  EXPECT_TRUE(results_of(out) == before);
  EXPECT_EQ(read_bytes(folder.metrics()), metrics);
}

// Rows that were accepted and kept are the same whatever the grid, losses the same up to rounding.
TEST(WholeRun, DoesNotDependOnTheGrid) {
  const ScratchFolder scratch;
  const std::string alone = scratch / "1x1";
  ASSERT_EQ(run_job(1, tiny_run(alone, {"--iterations", "1"})).status, 0);
  const std::map<std::string, double> expected = losses_of(alone);
  ASSERT_GE(expected.size(), 6U);
  struct Shape {
    int dp, tp;
  };
  for (const Shape shape : {Shape{2, 1}, Shape{1, 2}, Shape{2, 2}}) {
    const std::string name = std::to_string(shape.dp) + "x" + std::to_string(shape.tp);
    const std::string out = scratch / name;
    const Ended ended =
        run_job(shape.dp * shape.tp, tiny_run(out, {"--iterations", "1", "--tp", std::to_string(shape.tp)}));
    ASSERT_EQ(ended.status, 0) << name << ": " << ended.err;
    for (const char* stage : {"instructions", "initial", "extended", "sft_generator", "sft_extender"}) {
      const Table table = read_table(RunFolder(out).stage_file(1, stage));
      const Table wanted = read_table(RunFolder(alone).stage_file(1, stage));
      EXPECT_TRUE(table.columns() == wanted.columns()) << name << ": " << stage;
      EXPECT_EQ(table.attributes, wanted.attributes) << name << ": " << stage;
    }
    const std::map<std::string, double> losses = losses_of(out);
    std::vector<double> values, reference;
    for (const auto& [step, loss] : losses) values.push_back(loss);
    for (const auto& [step, loss] : expected) reference.push_back(loss);
    EXPECT_LT(relative_error(values, reference), tolerance(1000))
        << name;  // the vocabulary is the longest sum
  }
}

}  // namespace
}  // namespace sl::test
