#include "core/thread.hpp"

#include <pthread.h>
#include <signal.h>

#include <utility>

namespace sl {

std::jthread start_thread(const char* name, std::function<void(const std::stop_token&)> body) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::jthread thread(std::move(body));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_setname_np(thread.native_handle(), name);
  return thread;
}

}  // namespace sl
