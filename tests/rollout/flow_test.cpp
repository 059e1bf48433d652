#include "rollout/flow.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace sl {
namespace {

// Suspends whoever awaits it until resume() is called.
struct Gate {
  std::coroutine_handle<> waiting;
  void resume() { std::exchange(waiting, {}).resume(); }

  struct Awaiter {
    Gate* gate;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) { gate->waiting = handle; }
    void await_resume() const noexcept {}
  };
  Awaiter operator co_await() { return {this}; }
};

// Counts how many are alive.
struct Guard {
  explicit Guard(int& count) : alive(&count) { ++*alive; }
  ~Guard() { --*alive; }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
  int* alive;
};

Task<int> answer() { co_return 42; }

Task<int> fails() {
  throw std::runtime_error("broken");
  co_return 0;
}

TEST(Flow, TaskIsLazy) {
  bool ran = false;
  const auto make = [&]() -> Task<void> {
    ran = true;
    co_return;
  };
  Task<void> task = make();
  EXPECT_FALSE(ran);
  EXPECT_FALSE(task.done());
  task.start();
  EXPECT_TRUE(ran);
  EXPECT_TRUE(task.done());
  task.result();
}

TEST(Flow, ValuesPassThroughChains) {
  const auto twice = []() -> Task<int> { co_return 2 * co_await answer(); };
  const auto text = [&]() -> Task<std::unique_ptr<std::string>> {
    const int value = co_await twice() + co_await answer();
    co_return std::make_unique<std::string>(std::to_string(value));
  };
  auto task = text();
  task.start();
  ASSERT_TRUE(task.done());
  EXPECT_EQ(*task.result(), "126");
}

TEST(Flow, ExceptionsReachWhoAwaits) {
  const auto catches = []() -> Task<std::string> {
    try {
      co_await fails();
    } catch (const std::runtime_error& error) {
      co_return error.what();
    }
    co_return "nothing thrown";
  };
  auto caught = catches();
  caught.start();
  EXPECT_EQ(caught.result(), "broken");

  const auto passes = []() -> Task<int> { co_return co_await fails() + 1; };
  auto passed = passes();
  passed.start();
  ASSERT_TRUE(passed.done());
  EXPECT_THROW(passed.result(), std::runtime_error);
}

TEST(Flow, ResumesTheInnermostAndUnwindsOutwards) {
  Gate gate;
  std::vector<std::string> order;
  const auto inner = [&]() -> Task<int> {
    order.emplace_back("inner waits");
    co_await gate;
    order.emplace_back("inner goes on");
    co_return 7;
  };
  const auto outer = [&]() -> Task<int> {
    const int value = co_await inner();
    order.emplace_back("outer goes on");
    co_return value + 1;
  };
  auto task = outer();
  task.start();
  order.emplace_back("back in main");
  EXPECT_FALSE(task.done());
  gate.resume();
  ASSERT_TRUE(task.done());
  EXPECT_EQ(task.result(), 8);
  EXPECT_EQ(order,
            (std::vector<std::string>{"inner waits", "back in main", "inner goes on", "outer goes on"}));
}

TEST(Flow, DestroyingASuspendedTaskDestroysAllItsLocals) {
  Gate gate;
  int alive = 0;
  const auto inner = [&]() -> Task<void> {
    const Guard guard(alive);
    co_await gate;
  };
  const auto outer = [&](std::unique_ptr<Guard> argument) -> Task<void> {
    const Guard guard(alive);
    co_await inner();
    argument.reset();
  };
  {
    auto task = outer(std::make_unique<Guard>(alive));
    EXPECT_EQ(alive, 1);  // the argument, kept in the frame of a task that has not started
    task.start();
    EXPECT_EQ(alive, 3);
    auto moved = std::move(task);
    EXPECT_EQ(alive, 3);
    moved = Task<void>();
    EXPECT_EQ(alive, 0);
    auto never_started = outer(std::make_unique<Guard>(alive));
    EXPECT_EQ(alive, 1);
  }
  EXPECT_EQ(alive, 0);
}

TEST(Flow, MisuseIsABug) {
  auto task = answer();
  EXPECT_THROW(task.result(), BugError);
  task.start();
  EXPECT_THROW(task.start(), BugError);
  EXPECT_EQ(task.result(), 42);
  Task<int> none;
  EXPECT_THROW(none.start(), BugError);
}

}  // namespace
}  // namespace sl
