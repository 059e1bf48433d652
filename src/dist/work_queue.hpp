// Work handed out while it is being done: counters that all ranks share, changed atomically by MPI one-sided
// operations, and a queue over one of them. No server, and nobody waits for anybody.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/communicator_mpi.hpp"

namespace sl {

// The counters live with rank 0. Where all ranks are on one node they are shared memory, reached without the
// help of rank 0's process, which may compute for as long as it likes. Across nodes that holds where the
// network does atomics by itself (InfiniBand, with OMPI_MCA_osc=ucx); elsewhere an operation waits for rank
// 0's next MPI call. Counters are used by the thread that started MPI.
class SharedCounters {
 public:
  // Collective over the session's ranks; all counters start at 0.
  SharedCounters(const MpiSession& session, int count);
  // For one rank without MPI.
  explicit SharedCounters(int count);
  ~SharedCounters();  // collective
  SharedCounters(const SharedCounters&) = delete;
  SharedCounters& operator=(const SharedCounters&) = delete;

  int64_t fetch_add(int index, int64_t amount);  // the value before
  int64_t read(int index) { return fetch_add(index, 0); }
  // Sets all to 0. Collective: waits for all ranks; no rank returns before it is done.
  void reset();

 private:
  int count_;
  bool owner_ = true;
  MPI_Comm comm_ = MPI_COMM_NULL;
  MPI_Win window_ = MPI_WIN_NULL;
  int64_t* memory_ = nullptr;   // of this rank; empty but on rank 0
  std::vector<int64_t> local_;  // without MPI
};

// A list of pending samples that replicas take chunks of: each sample goes to exactly one replica.
class WorkQueue {
 public:
  // `pending` is the same on every rank, and counter `index` of `counters` (0 at the start) is for this queue
  // alone. `replica` joins the ranks that work on a chunk together; all three outlive the queue.
  WorkQueue(SharedCounters& counters, int index, Communicator& replica, std::vector<int64_t> pending);

  // The next samples for this replica: at_most, fewer when the list runs out, none when it has. Every rank of
  // the replica calls it with the same at_most > 0 and receives the same.
  std::vector<int64_t> next(int64_t at_most);

 private:
  SharedCounters& counters_;
  int index_;
  Communicator& replica_;
  std::vector<int64_t> pending_;
};

}  // namespace sl
