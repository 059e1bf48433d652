// Bits that flip and files that are cut on the disk: `inspect --verify` names the file; the run makes again
// what can be made again, or refuses with one line, and ends as the undisturbed one.
#include <gtest/gtest.h>

#include <random>

#include "io/checkpoint.hpp"
#include "launch.hpp"

namespace sl::test {
namespace {

namespace fs = std::filesystem;

// The program alone, without a launcher.
Ended inspect(const std::string& out) {
  const ScratchFolder files;
  const std::string command = "'" SELFLENGTHEN_BINARY "' inspect --verify '" + out + "' > '" +
                              (files / "out") + "' 2> '" + (files / "err") + "'";
  const int status = std::system(command.c_str());
  return {WEXITSTATUS(status), read_bytes(files / "out"), read_bytes(files / "err")};
}

class Damaged : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(run_job(2, tiny_run(undisturbed_)).status, 0);
    fs::copy(undisturbed_, out_, fs::copy_options::recursive);
  }

  // Changes one bit, or cuts a part of the file off.
  void flip(const std::string& name) {
    std::string bytes = read_bytes(out_ + "/" + name);
    bytes[generator_() % bytes.size()] ^= static_cast<char>(1U << (generator_() % 8));
    write_bytes(out_ + "/" + name, bytes);
  }
  void cut(const std::string& name) {
    const std::string bytes = read_bytes(out_ + "/" + name);
    write_bytes(out_ + "/" + name, bytes.substr(0, generator_() % bytes.size()));
  }
  // Bits all over the middle: small HDF5 files have much room that holds nothing.
  void spoil(const std::string& name) {
    std::string bytes = read_bytes(out_ + "/" + name);
    for (size_t at = bytes.size() / 4; at < 3 * bytes.size() / 4; at += 16) bytes[at] ^= 4;
    write_bytes(out_ + "/" + name, bytes);
  }
  // A run whose next start finds `name` damaged says so, and goes on once it is removed.
  void expect_refused_until_removed(const std::string& name, const std::string& removed) {
    const Ended refused = run_job(2, tiny_run(out_));
    EXPECT_EQ(refused.status, 2) << name;
    EXPECT_NE(refused.err.find(name), std::string::npos) << refused.err;
    EXPECT_NE(refused.err.find("remove"), std::string::npos) << refused.err;
    fs::remove_all(out_ + "/" + removed);
    const Ended again = run_job(2, tiny_run(out_));
    ASSERT_EQ(again.status, 0) << name << ": " << again.err;
    expect_same_results(out_, undisturbed_);
  }

  std::mt19937 generator_{20261128};
  ScratchFolder scratch_;
  std::string undisturbed_ = scratch_ / "undisturbed", out_ = scratch_ / "run";
};

TEST_F(Damaged, IsFoundInEveryKindOfFile) {
  ASSERT_EQ(inspect(out_).status, 0) << inspect(out_).out;
  for (const std::string& name : std::vector<std::string>{
           "run.json", "metrics.jsonl", "iter_01/instructions.h5", "iter_01/initial.h5",
           "iter_02/extended.h5", "iter_02/sft_generator.h5", "iter_01/generator/adapter_model.safetensors",
           "iter_02/extender/adapter_config.json"}) {
    const std::string whole = read_bytes(out_ + "/" + name);
    int found = 0;
    constexpr int flips = 6;
    for (int i = 0; i < flips; ++i) {
      flip(name);
      const Ended ended = inspect(out_);
      EXPECT_NE(ended.status, 139) << name;
      const bool named = ended.status == 1 && ended.out.find(name) != std::string::npos;
      found += named ? 1 : 0;
      // HDF5 files have bytes that hold nothing; who reads past them reads the same.
      if (!named && name.ends_with(".h5")) {
        EXPECT_TRUE(read_table(out_ + "/" + name).columns() ==
                    read_table(undisturbed_ + "/" + name).columns())
            << name;
      } else {
        EXPECT_TRUE(named) << name << ": " << ended.out << ended.err;
      }
      write_bytes(out_ + "/" + name, whole);
    }
    EXPECT_GE(found, flips / 2) << name;
    if (name != "metrics.jsonl") {  // which has no end that could be missed
      cut(name);
      const Ended ended = inspect(out_);
      EXPECT_TRUE(ended.status == 1 && ended.out.find(name) != std::string::npos)
          << name << ": " << ended.out << ended.err;
      write_bytes(out_ + "/" + name, whole);
    }
  }
}

TEST_F(Damaged, TablesAdaptersAndRunJsonAreRefusedUntilRemoved) {
  spoil("iter_01/initial.h5");
  expect_refused_until_removed("iter_01/initial.h5", "iter_01/initial.h5");
  spoil("iter_02/sft_extender.h5");
  expect_refused_until_removed("iter_02/sft_extender.h5", "iter_02/sft_extender.h5");
  spoil("iter_01/extender/adapter_model.safetensors");
  fs::remove(out_ + "/iter_02/extended.h5");  // work that needs it
  expect_refused_until_removed("iter_01/extender/adapter_model.safetensors", "iter_01/extender");
  spoil("run.json");
  expect_refused_until_removed("run.json", "run.json");
}

// Journals and checkpoints: what is lost is done again without asking.
TEST_F(Damaged, JournalsAndCheckpointsAreMadeAgain) {
  const RunFolder folder(out_);
  int damaged = 0;
  struct Target {
    std::string file;
    bool part;  // not the file, a checkpoint's index, but the first part that it names
  };
  const std::string checkpoint = folder.checkpoint(1, "generator");
  for (const auto& [file, part] : {Target{folder.journal(1, "initial", 0), false}, Target{checkpoint, false},
                                   Target{checkpoint, true}}) {
    for (const bool flipped : {true, false}) {
      fs::remove_all(out_);
      Job job(2, tiny_run(out_));
      while (job.running() && !(fs::exists(file) && fs::file_size(file) > 200))
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      job.kill_all();
      (void)job.wait();
      if (!fs::exists(file) || fs::file_size(file) == 0) continue;  // its stage was over: nothing to damage
      std::string name = fs::relative(file, out_);
      if (part) name = fs::path(name).parent_path() / CheckpointFile(file).index().pieces[0].part;
      flipped ? spoil(name) : cut(name);
      const Ended verified = inspect(out_);
      const bool torn_line = !flipped && name.ends_with(".log");  // as a kill leaves it: no damage
      if (!torn_line) {
        EXPECT_EQ(verified.status, 1) << name;
        EXPECT_NE(verified.out.find(name), std::string::npos) << verified.out;
        EXPECT_TRUE(!part || verified.out.find("tensor '") != std::string::npos) << verified.out;
      }
      const Ended again = run_job(2, tiny_run(out_));
      ASSERT_EQ(again.status, 0) << name << ": " << again.err;
      EXPECT_TRUE(torn_line || again.err.find(fs::path(name).filename()) != std::string::npos) << again.err;
      expect_same_results(out_, undisturbed_);
      ++damaged;
    }
  }
  RecordProperty("damaged", damaged);
  EXPECT_GE(damaged, 2);
}

}  // namespace
}  // namespace sl::test
