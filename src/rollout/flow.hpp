// Task<T>: a coroutine that starts when it is awaited (or started from outside) and hands its value, or its
// exception, to whoever awaits it. Control passes by symmetric transfer, so chains of any depth use no stack.
//
// A Task owns its coroutine: destroying a Task that is suspended destroys the coroutine's locals, and with
// them the tasks and completions it is waiting for. Nothing here is thread-safe.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

#include "core/error.hpp"

namespace sl {

template <typename T>
class Task;

namespace flow_detail {

class PromiseBase {
 public:
  std::suspend_always initial_suspend() noexcept { return {}; }
  void unhandled_exception() noexcept { exception_ = std::current_exception(); }

  struct FinalAwaiter {
    bool await_ready() noexcept { return false; }
    template <typename Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> handle) noexcept {
      return handle.promise().continuation_;
    }
    void await_resume() noexcept {}
  };
  FinalAwaiter final_suspend() noexcept { return {}; }

  void continue_with(std::coroutine_handle<> continuation) { continuation_ = continuation; }

 protected:
  void rethrow() {
    if (exception_) std::rethrow_exception(exception_);
  }

 private:
  std::coroutine_handle<> continuation_ = std::noop_coroutine();
  std::exception_ptr exception_;
};

template <typename T>
class Promise : public PromiseBase {
 public:
  Task<T> get_return_object();
  void return_value(T value) { value_.emplace(std::move(value)); }
  T result() {
    rethrow();
    return std::move(*value_);
  }

 private:
  std::optional<T> value_;
};

template <>
class Promise<void> : public PromiseBase {
 public:
  Task<void> get_return_object();
  void return_void() noexcept {}
  void result() { rethrow(); }
};

}  // namespace flow_detail

template <typename T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = flow_detail::Promise<T>;

  Task() = default;
  explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  ~Task() {
    if (handle_) handle_.destroy();
  }
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      if (handle_) handle_.destroy();
      handle_ = std::exchange(other.handle_, {});
    }
    return *this;
  }
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  // From outside a coroutine: runs the task until it first waits. Once a task, and not for an awaited one.
  void start() {
    require(handle_ && !started_, "a task is started twice, or there is none");
    started_ = true;
    handle_.resume();
  }
  bool done() const { return handle_ && handle_.done(); }
  // The value, moved out, or the exception thrown. The task is done.
  T result() {
    require(done(), "the result of a task that is not done");
    return handle_.promise().result();
  }

  auto operator co_await() {
    struct Awaiter {
      std::coroutine_handle<promise_type> handle;
      bool await_ready() const noexcept { return false; }
      std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiting) noexcept {
        handle.promise().continue_with(awaiting);
        return handle;
      }
      T await_resume() { return handle.promise().result(); }
    };
    require(handle_ && !started_, "a task is awaited twice, or there is none");
    started_ = true;
    return Awaiter{handle_};
  }

 private:
  std::coroutine_handle<promise_type> handle_;
  bool started_ = false;
};

namespace flow_detail {

template <typename T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise<T>>::from_promise(*this));
}

inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise<void>>::from_promise(*this));
}

}  // namespace flow_detail
}  // namespace sl
