// MPI: the session of the process, communicators over its ranks, and the groups of a process grid.
#pragma once

#include <mpi.h>

#include <memory>
#include <string>

#include "dist/communicator.hpp"
#include "dist/layout.hpp"

namespace sl {

// Throws LibraryError with the call's text unless `code` is MPI_SUCCESS.
void check_mpi(int code, const char* call, SourcePlace at = SourcePlace::current());

// For libraries that take an MPI communicator and shall work on this rank alone.
MPI_Comm self_comm();

// Reductions add in an order that depends on the number of ranks and the number of elements alone, and
// give every rank the same bits: the algorithms that OpenMPI's "tuned" component chooses among for
// commutative operations (recursive doubling, ring, segmented ring) fix who adds what beforehand.
class MpiCommunicator : public Communicator {
 public:
  // MPI counts are int: longer messages go in pieces of this many elements.
  static constexpr int64_t longest_piece = int64_t{1} << 28;

  // Takes `comm` over and frees it. `name`, a literal, says whose it is where a collective hangs. A smaller
  // `piece` is for tests.
  explicit MpiCommunicator(MPI_Comm comm, int64_t piece = longest_piece, const char* name = "some ranks");
  ~MpiCommunicator() override;
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  MPI_Comm raw() const { return comm_; }  // for libraries that take one: parallel HDF5

  void all_reduce_sum(const Tensor& tensor) override { reduce(tensor, MPI_SUM); }
  void all_reduce_max(const Tensor& tensor) override { reduce(tensor, MPI_MAX); }
  void reduce_sum(const Tensor& tensor, int root) override;
  void reduce_scatter_sum(const Tensor& whole, const Tensor& part) override;
  void all_gather(const Tensor& part, const Tensor& out) override;
  void broadcast(std::span<std::byte> bytes, int root) override;
  void all_reduce_sum(std::span<double> values) override;
  void all_reduce_max(std::span<int64_t> values) override;
  std::vector<std::string> all_gather(const std::string& part) override;
  void barrier() override;

 private:
  void reduce(const Tensor& tensor, MPI_Op operation);
  void reduce_to(int root, float* values, int64_t count);
  void gather_bytes(const std::byte* part, std::byte* out, int64_t bytes);

  MPI_Comm comm_;
  int64_t piece_;
  const char* name_;
  int rank_ = 0, size_ = 1;
};

// MPI from start-up to the end of main. Works under mpirun, srun and alone. One a process, outliving all that
// was made from it. Catch exceptions inside its life, print them, and call abort(): other ranks may be
// waiting in a collective for this one. A session of several ranks that an exception leaves aborts by itself.
class MpiSession {
 public:
  MpiSession();   // MPI_THREAD_FUNNELED; errors are returned, and become LibraryError
  ~MpiSession();  // MPI_Finalize
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int node_rank() const { return node_rank_; }  // among the ranks of this node
  int node_size() const { return node_size_; }
  MPI_Comm raw() const { return world_; }  // for libraries that take one: parallel HDF5

  std::unique_ptr<Communicator> world() const;
  // The ranks that give the same `color`, ordered by `key`, then by world rank. Collective over all ranks.
  std::unique_ptr<Communicator> split(int color, int key = 0, const char* name = "some ranks") const;
  // Ends all ranks at once. Does not return.
  [[noreturn]] void abort(int code) const;

 private:
  MPI_Comm world_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1, node_rank_ = 0, node_size_ = 1;
  int exceptions_before_ = 0;
};

// The communicators of a process grid.
struct Groups {
  Grid grid;
  Place place;
  std::unique_ptr<Communicator> world;
  std::unique_ptr<Communicator> tensor;  // the ranks of this replica
  std::unique_ptr<Communicator> data;    // the ranks of the same tp_rank, one a replica
  MPI_Comm raw_world = MPI_COMM_SELF;
};
// Collective over all ranks. BugError unless the grid has as many ranks as the session.
Groups make_groups(const MpiSession& session, const Grid& grid);
// One rank alone, without MPI having been started.
Groups make_local_groups();

}  // namespace sl
