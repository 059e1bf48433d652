#include "dist/work_queue.hpp"

#include <algorithm>
#include <exception>
#include <utility>

#include "core/activity.hpp"

namespace sl {

SharedCounters::SharedCounters(const MpiSession& session, int count)
    : count_(count), owner_(session.rank() == 0), comm_(session.raw()) {
  require(count > 0, "no shared counters");
  const Waiting waiting("making shared counters", "all ranks");
  const MPI_Aint bytes = owner_ ? static_cast<MPI_Aint>(count) * static_cast<MPI_Aint>(sizeof(int64_t)) : 0;
  if (session.node_size() == session.size()) {
    check_mpi(MPI_Win_allocate_shared(bytes, sizeof(int64_t), MPI_INFO_NULL, comm_, &memory_, &window_),
              "MPI_Win_allocate_shared");
  } else {
    check_mpi(MPI_Win_allocate(bytes, sizeof(int64_t), MPI_INFO_NULL, comm_, &memory_, &window_),
              "MPI_Win_allocate");
  }
  check_mpi(MPI_Win_set_errhandler(window_, MPI_ERRORS_RETURN), "MPI_Win_set_errhandler");
  check_mpi(MPI_Win_lock_all(MPI_MODE_NOCHECK, window_), "MPI_Win_lock_all");
  if (owner_) std::fill_n(memory_, count, 0);
  check_mpi(MPI_Win_sync(window_), "MPI_Win_sync");
  check_mpi(MPI_Barrier(comm_), "MPI_Barrier");
}

SharedCounters::SharedCounters(int count) : count_(count), local_(static_cast<size_t>(count), 0) {}

SharedCounters::~SharedCounters() {
  // Freeing waits for all ranks: one that an exception drives out may be the only one here.
  if (window_ == MPI_WIN_NULL || std::uncaught_exceptions() > 0) return;
  const Waiting waiting("freeing shared counters", "all ranks");
  MPI_Win_unlock_all(window_);
  MPI_Win_free(&window_);
}

int64_t SharedCounters::fetch_add(int index, int64_t amount) {
  require(index >= 0 && index < count_, "no such shared counter");
  if (window_ == MPI_WIN_NULL)
    return std::exchange(local_[static_cast<size_t>(index)], local_[static_cast<size_t>(index)] + amount);
  const Waiting waiting("adding to a shared counter", "all ranks");
  int64_t before = 0;
  check_mpi(MPI_Fetch_and_op(&amount, &before, MPI_INT64_T, 0, index, MPI_SUM, window_), "MPI_Fetch_and_op");
  check_mpi(MPI_Win_flush(0, window_), "MPI_Win_flush");
  return before;
}

void SharedCounters::reset() {
  if (window_ == MPI_WIN_NULL) {
    std::fill(local_.begin(), local_.end(), 0);
    return;
  }
  const Waiting waiting("resetting shared counters", "all ranks");
  check_mpi(MPI_Barrier(comm_), "MPI_Barrier");
  if (owner_) {
    for (int i = 0; i < count_; ++i) fetch_add(i, -read(i));
  }
  check_mpi(MPI_Barrier(comm_), "MPI_Barrier");
}

WorkQueue::WorkQueue(SharedCounters& counters, int index, Communicator& replica, std::vector<int64_t> pending)
    : counters_(counters), index_(index), replica_(replica), pending_(std::move(pending)) {}

std::vector<int64_t> WorkQueue::next(int64_t at_most) {
  require(at_most > 0, "a chunk of no samples");
  const auto total = static_cast<int64_t>(pending_.size());
  int64_t begin = 0;
  if (replica_.rank() == 0) begin = std::min(total, counters_.fetch_add(index_, at_most));
  replica_.broadcast(std::as_writable_bytes(std::span(&begin, 1)), 0);
  const int64_t end = begin + std::min(at_most, total - begin);
  return {pending_.begin() + begin, pending_.begin() + end};
}

}  // namespace sl
