// A disk that is full at any moment: one line, exit code 1, nothing half-written; with space again the same
// command ends as the undisturbed run.
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cstring>
#include <set>

#include "io/checkpoint.hpp"
#include "launch.hpp"

namespace sl::test {
namespace {

// A file system in memory of so many bytes, while it lives.
class SmallDisk {
 public:
  SmallDisk(std::string path, int64_t bytes) : path_(std::move(path)) {
    std::filesystem::create_directories(path_);
    const std::string size = "size=" + std::to_string(bytes);
    mounted_ = ::mount("tmpfs", path_.c_str(), "tmpfs", 0, size.c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool mounted() const { return mounted_; }
  bool grow(int64_t bytes) const {
    const std::string size = "size=" + std::to_string(bytes);
    return ::mount("tmpfs", path_.c_str(), "tmpfs", MS_REMOUNT, size.c_str()) == 0;
  }

 private:
  std::string path_;
  bool mounted_ = false;
};

// Under its own name a file is whole.
void expect_whole_files(const std::string& out) {
  if (!std::filesystem::exists(out)) return;
  for (const auto& [name, bytes] : results_of(out)) {
    if (!name.ends_with(".h5")) continue;
    if (name.find("checkpoint/") != std::string::npos) {
      EXPECT_NO_THROW(CheckpointFile(out + "/" + name).check()) << name;
    } else {
      EXPECT_NO_THROW((void)read_table(out + "/" + name)) << name;
    }
  }
}

TEST(FullDisk, TheRunContinuesWithSpaceAgain) {
  const ScratchFolder scratch;
  const std::string undisturbed = scratch / "undisturbed", disk_path = scratch / "disk";
  ASSERT_EQ(run_job(2, tiny_run(undisturbed)).status, 0);
  int64_t all = 0;
  for (const auto& [name, bytes] : results_of(undisturbed)) all += static_cast<int64_t>(bytes.size());
  int failed = 0;
  std::set<std::string> where;  // kinds of files that did not fit
  constexpr int sizes = 7;
  for (int part = 0; part < sizes; ++part) {
    const SmallDisk disk(disk_path, 16384 + all * part / sizes);
    if (!disk.mounted()) GTEST_SKIP() << "no file system can be mounted here: " << std::strerror(errno);
    const std::string out = disk_path + "/run";
    const Ended ended = Job(2, tiny_run(out), {{"OMPI_MCA_odls_base_sigkill_timeout", "0"}}).wait();
    if (ended.status == 0) continue;
    ++failed;
    EXPECT_EQ(ended.status, 1) << ended.err;
    EXPECT_NE(ended.err.find("selflengthen [rank "), std::string::npos) << ended.err;
    for (const char* kind :
         {".h5", ".log", "metrics.jsonl", "adapter", "checkpoint", "run.json", "mkdir", ".beats"})
      if (ended.err.find(kind) != std::string::npos) where.insert(kind);
    expect_whole_files(out);
    ASSERT_TRUE(disk.grow(int64_t{64} << 20));
    const Ended again = run_job(2, tiny_run(out));
    ASSERT_EQ(again.status, 0) << "disk " << part << ": " << ended.err << again.err;
    EXPECT_EQ(state_of(out), "done");
    expect_same_results(out, undisturbed);
    if (testing::Test::HasFailure()) FAIL() << "disk " << part << ": " << ended.err;
  }
  RecordProperty("failed", failed);
  EXPECT_GE(failed, sizes / 2);
  for (const std::string& kind : where)
    RecordProperty("full_at_" + kind.substr(kind.find_first_not_of('.')), 1);
  EXPECT_GE(where.size(), 2U);
}

}  // namespace
}  // namespace sl::test
