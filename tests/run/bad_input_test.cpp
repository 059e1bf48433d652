// Mistakes of the user, on two ranks: one clear line a rank, exit code 2, nothing changed, no hang.
#include <gtest/gtest.h>

#include <sstream>

#include "launch.hpp"

namespace sl::test {
namespace {

void expect_refused(const Ended& ended, const std::vector<std::string>& said, int status = 2) {
  EXPECT_EQ(ended.status, status) << ended.err;
  for (const std::string& words : said) EXPECT_NE(ended.err.find(words), std::string::npos) << ended.err;
}

TEST(BadInput, OfTheCommandLine) {
  const ScratchFolder scratch;
  const std::string out = scratch / "run";
  expect_refused(run_job(2, tiny_run(out, {"--tp", "3"})), {"tp"});
  expect_refused(
      run_job(4, tiny_run(out, {"--tp", "4", "--model", source_dir + "/tests/reference/models/none"})),
      {"models/none"});
  expect_refused(run_job(2, tiny_run(out, {"--prompts", scratch / "no_prompts"})), {"no_prompts"});
  write_bytes(scratch / "typo.cfg", "itterations = 2\n");
  expect_refused(run_job(2, tiny_run(out, {"--config", scratch / "typo.cfg"})),
                 {"itterations", "iterations", "typo.cfg"});
  EXPECT_FALSE(std::filesystem::exists(out));
  expect_refused(run_job(1, tiny_run(scratch / "typo.cfg")), {"typo.cfg", "cannot be made a folder"});
  expect_refused(run_job(1, tiny_run(out, {"--instruction-min-words", "9", "--instruction-max-words", "10"})),
                 {"--instruction-min-words", "9", "10"});
}

TEST(BadInput, ARunFolderOfAnotherRun) {
  const ScratchFolder scratch;
  const std::string out = scratch / "run";
  ASSERT_EQ(run_job(2, tiny_run(out, {"--iterations", "1"})).status, 0);
  const auto before = results_of(out);
  expect_refused(run_job(2, tiny_run(out, {"--model", source_dir + "/tests/reference/models/qwen2"})),
                 {"another model", out});
  expect_refused(run_job(2, tiny_run(out, {"--response-attempts", "7"})), {"response-attempts", "7", out});
  const RunLock held{RunFolder(out)};
  expect_refused(run_job(2, tiny_run(out)), {"in use by another run"});
  EXPECT_TRUE(results_of(out) == before);
}

}  // namespace
}  // namespace sl::test
