// Runs GoogleTest on all ranks at once. After each test the ranks put their failures together: rank 0 prints
// them in rank order, and the program fails on every rank when any rank failed.
#include "mpi_main.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>
#include <vector>

namespace sl {
namespace {

MpiSession* the_session = nullptr;

class RankedListener : public testing::EmptyTestEventListener {
 public:
  explicit RankedListener(const MpiSession& session)
      : session_(session), raw_(duplicate(session.raw())), world_(std::make_unique<MpiCommunicator>(raw_)) {}

  bool failed() const { return !failed_tests_.empty(); }

 private:
  // How long a rank that failed waits for the others, which may be in a collective that it left.
  static constexpr std::chrono::seconds patience{30};

  static MPI_Comm duplicate(MPI_Comm comm) {
    MPI_Comm copy = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(comm, &copy), "MPI_Comm_dup");
    return copy;
  }

  void OnTestProgramStart(const testing::UnitTest& program) override {
    say("[==========] {} tests on {} ranks\n", program.test_to_run_count(), session_.size());
  }

  void OnTestStart(const testing::TestInfo& test) override { say("[ RUN      ] {}\n", name_of(test)); }

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    failures_ += fmt::format("[rank {}] {}:{}: Failure\n{}\n", session_.rank(),
                             result.file_name() != nullptr ? result.file_name() : "unknown file",
                             result.line_number(), result.message());
  }

  void OnTestEnd(const testing::TestInfo& test) override {
    const bool passed = gather_failures(name_of(test));
    say("[{}] {} ({} ms)\n", passed ? "       OK " : "  FAILED  ", name_of(test),
        test.result()->elapsed_time());
  }

  // Failures outside of tests: of fixtures and environments.
  void OnTestProgramEnd(const testing::UnitTest& program) override {
    gather_failures("outside of tests");
    say("[==========] {} tests ran, {} failed\n", program.test_to_run_count(), failed_tests_.size());
    for (const std::string& name : failed_tests_) say("[  FAILED  ] {}\n", name);
  }

  // True when no rank has failed since the last call. Collective.
  bool gather_failures(const std::string& where) {
    wait_for_others(where);
    bool passed = true;
    for (const std::string& text : world_->all_gather(failures_)) {
      passed = passed && text.empty();
      say("{}", text);
    }
    failures_.clear();
    if (!passed) failed_tests_.push_back(where);
    return passed;
  }

  void wait_for_others(const std::string& where) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibarrier(raw_, &request), "MPI_Ibarrier");
    if (failures_.empty()) {
      check_mpi(MPI_Wait(&request, MPI_STATUS_IGNORE), "MPI_Wait");
      return;
    }
    const auto last = std::chrono::steady_clock::now() + patience;
    for (int done = 0; done == 0;) {
      check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
      if (done == 0 && std::chrono::steady_clock::now() > last) {
        std::fputs(failures_.c_str(), stderr);
        std::fprintf(stderr, "[rank %d] the other ranks do not reach the end of %s\n", session_.rank(),
                     where.c_str());
        session_.abort(1);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  static std::string name_of(const testing::TestInfo& test) {
    return fmt::format("{}.{}", test.test_suite_name(), test.name());
  }

  template <typename... Values>
  void say(fmt::format_string<Values...> text, Values&&... values) const {
    if (session_.rank() != 0) return;
    std::fputs(fmt::format(text, std::forward<Values>(values)...).c_str(), stdout);
    std::fflush(stdout);
  }

  const MpiSession& session_;
  MPI_Comm raw_;  // apart from what the tests use
  std::unique_ptr<MpiCommunicator> world_;
  std::string failures_;  // of this rank in the current test
  std::vector<std::string> failed_tests_;
};

}  // namespace

MpiSession& test_session() {
  require(the_session != nullptr, "no MPI session in this test program");
  return *the_session;
}

}  // namespace sl

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  sl::MpiSession session;
  sl::the_session = &session;
  try {
    sl::RankedListener listener(session);
    testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(&listener);
    const int own = RUN_ALL_TESTS();
    listeners.Release(&listener);
    return own != 0 || listener.failed() ? 1 : 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "[rank %d] %s\n", session.rank(), error.what());
    session.abort(1);
  }
}
