// Runs the program as a user does, under mpirun, and looks at the folder it leaves.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "../io/scratch.hpp"
#include "io/dataset.hpp"
#include "io/run_folder.hpp"

namespace sl::test {

inline const std::string source_dir = SELFLENGTHEN_SOURCE_DIR;
inline const std::string tiny_model = source_dir + "/tests/reference/models/tied";

struct Ended {
  int status = -1;
  std::string out, err;
};

// A job of so many ranks in a process group of its own (four on two busy cores have taken over a minute). One
// that is still running after `patience` seconds is killed, and counts as a hang.
class Job {
 public:
  Job(int ranks, const std::vector<std::string>& arguments,
      const std::map<std::string, std::string>& more_environment = {}, int patience = 200)
      : patience_(patience) {
    std::string command = "exec mpirun --oversubscribe --bind-to none -n " + std::to_string(ranks);
    for (const std::string& word : arguments) command += " '" + word + "'";
    const std::string out = files_ / "out", err = files_ / "err";
    process_ = ::fork();
    if (process_ != 0) return;
    ::setpgid(0, 0);
    for (const auto& variables : {environment(), more_environment})
      for (const auto& [name, value] : variables) ::setenv(name.c_str(), value.c_str(), 1);
    command += " >'" + out + "' 2>'" + err + "'";
    ::execl("/bin/bash", "bash", "-c", command.c_str(), nullptr);
    ::_exit(127);
  }
  ~Job() {
    if (process_ > 0) {
      kill_all();
      ::waitpid(process_, nullptr, 0);
    }
  }
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  bool running() {
    if (process_ > 0 && ::waitpid(process_, &status_, WNOHANG) == process_) process_ = -1;
    return process_ > 0;
  }
  void signal(int number) {
    if (process_ > 0) ::kill(process_, number);  // an ended job has -1, which would mean every process
  }
  // To every rank, past mpirun: of some signals it makes an abort of its own.
  void signal_ranks(int number) {
    for (const pid_t process : processes()) ::kill(process, number);
  }
  // The process of a rank; -1 when there is none (yet).
  pid_t process_of(int rank) const {
    const std::string mark = std::string(1, '\0') + "OMPI_COMM_WORLD_RANK=" + std::to_string(rank) + '\0';
    for (const pid_t process : processes()) {
      std::ifstream file("/proc/" + std::to_string(process) + "/environ", std::ios::binary);
      const std::string variables((std::istreambuf_iterator<char>(file)), {});
      if (variables.find(mark) != std::string::npos) return process;
    }
    return -1;
  }
  // SIGKILL to every rank (they are in groups of their own, below mpirun) and to mpirun.
  void kill_all() {
    if (process_ <= 0) return;
    signal_ranks(SIGKILL);
    ::kill(process_, SIGKILL);
  }
  // `meanwhile` is called again and again.
  Ended wait(const std::function<void()>& meanwhile = [] {}) {
    const auto begin = std::chrono::steady_clock::now();
    while (running()) {
      if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(patience_)) {
        ADD_FAILURE() << "hangs";
        kill_all();
      }
      meanwhile();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return {WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_), read_bytes(files_ / "out"),
            read_bytes(files_ / "err")};
  }

 private:
  // Those that mpirun has started; none when it has ended.
  std::vector<pid_t> processes() const {
    std::vector<pid_t> all;
    if (process_ <= 0) return all;
    const std::string own = std::to_string(process_);
    std::ifstream list("/proc/" + own + "/task/" + own + "/children");
    for (pid_t child = 0; list >> child;) all.push_back(child);
    return all;
  }
  static std::map<std::string, std::string> environment() {
    return {{"OMPI_ALLOW_RUN_AS_ROOT", "1"},
            {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
            {"OMP_NUM_THREADS", "1"},
            {"OMPI_MCA_mpi_yield_when_idle", "1"},
            {"OMPI_MCA_odls_base_sigkill_timeout", "1"},
            {"OMPI_MCA_btl_vader_single_copy_mechanism", "none"}};
  }
  ScratchFolder files_;
  int patience_;
  pid_t process_ = -1;
  int status_ = 0;
};

// The options of a tiny run; those given in `more`, a name and a value each, replace them.
inline std::vector<std::string> tiny_run(const std::string& out, const std::vector<std::string>& more = {}) {
  std::map<std::string, std::string> options = {{"--config", source_dir + "/tests/run/tiny.cfg"},
                                                {"--prompts", source_dir + "/input/prompts"},
                                                {"--seeds", source_dir + "/input/seeds"},
                                                {"--model", tiny_model},
                                                {"--out", out}};
  for (size_t i = 0; i + 1 < more.size(); i += 2) options[more[i]] = more[i + 1];
  std::vector<std::string> words = {SELFLENGTHEN_BINARY, "run", "--deterministic"};
  for (const auto& [name, value] : options) words.insert(words.end(), {name, value});
  return words;
}

inline Ended run_job(int ranks, const std::vector<std::string>& arguments, int patience = 200) {
  return Job(ranks, arguments, {}, patience).wait();
}

// Files of a run by name, its lock and its changing records left out.
inline std::map<std::string, std::string> results_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const std::string name = std::filesystem::relative(entry.path(), folder);
    if (name == ".lock" || name == "run.json" || name == "metrics.jsonl") continue;
    files[name] = read_bytes(entry.path());
  }
  return files;
}

// Loss of every training step, "iteration/role/step"; a step that was taken twice must have had the same.
inline std::map<std::string, double> losses_of(const std::string& folder) {
  std::map<std::string, double> losses;
  std::ifstream rows(folder + "/metrics.jsonl");
  for (std::string line; std::getline(rows, line);) {
    const auto row = nlohmann::json::parse(line);
    if (row.at("stage") != "training") continue;
    const std::string step = std::to_string(row.at("iteration").get<int>()) + "/" +
                             row.at("role").get<std::string>() + "/" +
                             std::to_string(row.at("step").get<int>());
    const double loss = row.at("loss");
    const auto [known, fresh] = losses.emplace(step, loss);
    EXPECT_EQ(known->second, loss) << step;
    (void)fresh;
  }
  return losses;
}

inline std::string state_of(const std::string& folder) { return RunFolder(folder).read_run().at("state"); }

inline void expect_same_results(const std::string& actual, const std::string& expected) {
  const auto files = results_of(actual), wanted = results_of(expected);
  for (const auto& [name, bytes] : wanted) {
    ASSERT_TRUE(files.contains(name)) << name << " is missing";
    if (name.ends_with(".h5")) {  // these hold times of writing
      const Table table = read_table(actual + "/" + name), same = read_table(expected + "/" + name);
      EXPECT_TRUE(table.columns() == same.columns() && table.attributes == same.attributes) << name;
      continue;
    }
    EXPECT_TRUE(files.at(name) == bytes) << name << " differs";
  }
  for (const auto& [name, bytes] : files) EXPECT_TRUE(wanted.contains(name)) << name << " is too much";
  EXPECT_EQ(losses_of(actual), losses_of(expected));
}

}  // namespace sl::test
