// Runs the real program and looks at what it leaves: exit code, both outputs, files.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

namespace sl::test {

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline std::vector<nlohmann::json> parse_rows(const std::string& text) {
  std::vector<nlohmann::json> rows;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty()) rows.push_back(nlohmann::json::parse(line));
  }
  return rows;
}

struct Outcome {
  int code = -1;
  std::string out, err;
  // Lines of `err` in which the program speaks: mpirun adds its own.
  std::vector<std::string> said() const {
    std::vector<std::string> lines;
    std::istringstream all(err);
    for (std::string line; std::getline(all, line);) {
      if (line.starts_with("selflengthen")) lines.push_back(line);
    }
    return lines;
  }
};

class Program : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "selflengthen_cli_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string at(const std::string& name) const { return (folder_ / name).string(); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return at(name);
  }
  std::vector<nlohmann::json> rows(const std::string& name) const { return parse_rows(read_text(at(name))); }
  static std::string reference(const std::string& path) {
    return std::string(SELFLENGTHEN_SOURCE_DIR) + "/tests/reference/" + path;
  }

  // `ranks` above 1 run under mpirun. A program that hangs is ended after a minute, with code 124.
  Outcome run(const std::vector<std::string>& arguments, int ranks = 1) const {
    std::string command =
        "OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "
        "OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_vader_single_copy_mechanism=none "
        "timeout 60 ";
    if (ranks > 1) command += "mpirun --oversubscribe --bind-to none -n " + std::to_string(ranks) + " ";
    command += quoted(SELFLENGTHEN_BINARY);
    for (const std::string& argument : arguments) command += " " + quoted(argument);
    command += " > " + quoted(at("stdout")) + " 2> " + quoted(at("stderr"));
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(at("stdout")), read_text(at("stderr"))};
  }

  // The user's mistake: exit code 2, nothing on standard output, one line on standard error with these words.
  void expect_refused(const std::vector<std::string>& arguments, const std::vector<std::string>& words,
                      int ranks = 1) const {
    const Outcome outcome = run(arguments, ranks);
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    ASSERT_EQ(outcome.said().size(), 1U) << outcome.err;
    if (ranks == 1) {
      EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    }
    for (const std::string& word : words) {
      EXPECT_NE(outcome.said().front().find(word), std::string::npos) << word << " in " << outcome.err;
    }
  }
  // Neither a file of that name nor a half-written one.
  void expect_no_file(const std::string& name) const {
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      EXPECT_FALSE(entry.path().filename().string().starts_with(name)) << entry.path();
    }
  }

 private:
  static std::string quoted(const std::string& text) {
    std::string out = "'";
    for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out + "'";
  }

  std::filesystem::path folder_;
};

}  // namespace sl::test
