// Threads beside the one that works. They never call MPI (MPI_THREAD_FUNNELED), HDF5 (Debian's is not made
// for threads), nor a GPU, and do not note activity, which is the working thread's.
#pragma once

#include <functional>
#include <stop_token>
#include <thread>

namespace sl {

// `name`, of 15 letters at most, is what the system's tools show. Signals stay with the working thread: it
// sets its mark, and where it sleeps in a call it wakes up.
std::jthread start_thread(const char* name, std::function<void(const std::stop_token&)> body);

}  // namespace sl
