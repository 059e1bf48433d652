#include "dist/communicator_mpi.hpp"

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "core/activity.hpp"
#include "core/buffer.hpp"
#include "dist/operands.hpp"

namespace sl {
namespace {

template <typename T>
void reduce_in_pieces(T* values, int64_t count, int64_t piece, MPI_Datatype type, MPI_Op operation,
                      MPI_Comm comm) {
  for (int64_t at = 0; at < count; at += piece) {
    check_mpi(MPI_Allreduce(MPI_IN_PLACE, values + at, static_cast<int>(std::min(piece, count - at)), type,
                            operation, comm),
              "MPI_Allreduce");
  }
}

}  // namespace

void check_mpi(int code, const char* call, SourcePlace at) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw LibraryError("MPI", call, std::string(text, static_cast<size_t>(length)), at);
}

MPI_Comm self_comm() { return MPI_COMM_SELF; }

MpiCommunicator::MpiCommunicator(MPI_Comm comm, int64_t piece, const char* name)
    : comm_(comm), piece_(piece), name_(name) {
  require(piece > 0 && piece <= INT_MAX, "MPI messages of an impossible length");
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
}

MpiCommunicator::~MpiCommunicator() {
  // Freeing is collective: a rank that an exception drives out may be the only one here.
  if (std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
}

void MpiCommunicator::reduce_sum(const Tensor& tensor, int root) {
  require(root >= 0 && root < size_, "a sum for a rank outside the group");
  require_numbers("reduce", tensor);
  if (tensor.device() == Device::cuda || tensor.dtype() != DType::f32) {  // through the host, in f32
    std::vector<float> values = download_floats(tensor);
    reduce_to(root, values.data(), tensor.size());
    if (rank_ == root) upload_floats(tensor, values);
    return;
  }
  DeviceTurn turn(tensor.device());
  reduce_to(root, tensor.data<float>(), tensor.size());
}

void MpiCommunicator::reduce_scatter_sum(const Tensor& whole, const Tensor& part) {
  require_numbers("reduce_scatter", whole);
  require_parts("reduce_scatter", whole, part, size_);
  std::vector<float> values = download_floats(whole);
  const int64_t count = part.size();
  for (int rank = 0; rank < size_; ++rank) reduce_to(rank, values.data() + rank * count, count);
  const auto own = values.begin() + rank_ * count;
  upload_floats(part, {own, own + count});
}

void MpiCommunicator::reduce_to(int root, float* values, int64_t count) {
  const Waiting waiting("reduce_sum", name_);
  for (int64_t at = 0; at < count; at += piece_) {
    const auto n = static_cast<int>(std::min(piece_, count - at));
    const void* own = rank_ == root ? MPI_IN_PLACE : values + at;
    check_mpi(MPI_Reduce(own, rank_ == root ? values + at : nullptr, n, MPI_FLOAT, MPI_SUM, root, comm_),
              "MPI_Reduce");
  }
}

void MpiCommunicator::all_gather(const Tensor& part, const Tensor& out) {
  const Waiting waiting("all_gather", name_);
  require_parts("all_gather", out, part, size_);
  if (part.device() == Device::cuda) {  // through the host
    const int64_t bytes = part.bytes();
    std::vector<std::byte> all(static_cast<size_t>(out.bytes()));
    copy_to_host(all.data() + rank_ * bytes, part, bytes);
    gather_bytes(all.data() + rank_ * bytes, all.data(), bytes);
    copy_to_device(out, all.data(), out.bytes());
    return;
  }
  DeviceTurn turn(part.device());
  gather_bytes(static_cast<const std::byte*>(part.raw()), static_cast<std::byte*>(out.raw()), part.bytes());
}

void MpiCommunicator::gather_bytes(const std::byte* part, std::byte* out, int64_t bytes) {
  std::byte* own = out + rank_ * bytes;
  if (bytes <= piece_) {
    const auto count = static_cast<int>(bytes);
    const void* source = part == own ? MPI_IN_PLACE : part;
    check_mpi(MPI_Allgather(source, count, MPI_BYTE, out, count, MPI_BYTE, comm_), "MPI_Allgather");
    return;
  }
  if (part != own) std::memcpy(own, part, static_cast<size_t>(bytes));
  for (int rank = 0; rank < size_; ++rank) {
    broadcast(std::span(out + rank * bytes, static_cast<size_t>(bytes)), rank);
  }
}

void MpiCommunicator::broadcast(std::span<std::byte> bytes, int root) {
  require(root >= 0 && root < size_, "broadcast from a rank outside the group");
  const Waiting waiting("broadcast", name_);
  const auto total = static_cast<int64_t>(bytes.size());
  for (int64_t at = 0; at < total; at += piece_) {
    const auto count = static_cast<int>(std::min(piece_, total - at));
    check_mpi(MPI_Bcast(bytes.data() + at, count, MPI_BYTE, root, comm_), "MPI_Bcast");
  }
}

void MpiCommunicator::all_reduce_sum(std::span<double> values) {
  const Waiting waiting("all_reduce_sum", name_);
  reduce_in_pieces(values.data(), static_cast<int64_t>(values.size()), piece_, MPI_DOUBLE, MPI_SUM, comm_);
}

void MpiCommunicator::all_reduce_max(std::span<int64_t> values) {
  const Waiting waiting("all_reduce_max", name_);
  reduce_in_pieces(values.data(), static_cast<int64_t>(values.size()), piece_, MPI_INT64_T, MPI_MAX, comm_);
}

std::vector<std::string> MpiCommunicator::all_gather(const std::string& part) {
  const Waiting waiting("all_gather", name_);
  const auto mine = static_cast<int64_t>(part.size());
  std::vector<int64_t> sizes(static_cast<size_t>(size_));
  check_mpi(MPI_Allgather(&mine, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, comm_), "MPI_Allgather");
  // One broadcast a rank: the total may exceed what a single call can count.
  std::vector<std::string> parts(static_cast<size_t>(size_));
  for (int rank = 0; rank < size_; ++rank) {
    std::string& text = parts[static_cast<size_t>(rank)];
    if (rank == rank_) {
      text = part;
    } else {
      text.resize(static_cast<size_t>(sizes[static_cast<size_t>(rank)]));
    }
    broadcast(std::as_writable_bytes(std::span(text)), rank);
  }
  return parts;
}

void MpiCommunicator::barrier() {
  const Waiting waiting("barrier", name_);
  check_mpi(MPI_Barrier(comm_), "MPI_Barrier");
}

void MpiCommunicator::reduce(const Tensor& tensor, MPI_Op operation) {
  const Waiting waiting(operation == MPI_SUM ? "all_reduce_sum" : "all_reduce_max", name_);
  const bool host_floats = tensor.device() != Device::cuda && tensor.dtype() == DType::f32;
  require_numbers("all_reduce", tensor);
  if (!host_floats) {  // through the host, in f32
    std::vector<float> values = download_floats(tensor);
    reduce_in_pieces(values.data(), tensor.size(), piece_, MPI_FLOAT, operation, comm_);
    upload_floats(tensor, values);
    return;
  }
  DeviceTurn turn(tensor.device());
  reduce_in_pieces(tensor.data<float>(), tensor.size(), piece_, MPI_FLOAT, operation, comm_);
}

MpiSession::MpiSession() : world_(MPI_COMM_WORLD), exceptions_before_(std::uncaught_exceptions()) {
  int started = 0;
  MPI_Initialized(&started);
  require(started == 0, "a second MPI session in one process");
  // Open MPI prefers UCX for one-sided operations wherever UCX starts, and then fails to make a window on
  // nodes that only TCP connects (seen with 4.1.4). Its other ways work everywhere; who has a network with
  // atomics sets the variable.
  setenv("OMPI_MCA_osc", "^ucx", /*overwrite=*/0);
  int provided = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED) throw LibraryError("MPI", "MPI_Init_thread", "no MPI_THREAD_FUNNELED");
  check_mpi(MPI_Comm_set_errhandler(world_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_set_errhandler(self_comm(), MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(world_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(world_, &size_), "MPI_Comm_size");
  MPI_Comm node = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(world_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node),
            "MPI_Comm_split_type");
  check_mpi(MPI_Comm_rank(node, &node_rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(node, &node_size_), "MPI_Comm_size");
  check_mpi(MPI_Comm_free(&node), "MPI_Comm_free");
}

MpiSession::~MpiSession() {
  // MPI_Finalize would wait for ranks that may be waiting for this one.
  if (size_ > 1 && std::uncaught_exceptions() > exceptions_before_) {
    std::fprintf(stderr, "rank %d: an exception left the MPI session; ending all ranks\n", rank_);
    abort(1);
  }
  MPI_Finalize();
}

std::unique_ptr<Communicator> MpiSession::world() const { return split(0, 0, "all ranks"); }

std::unique_ptr<Communicator> MpiSession::split(int color, int key, const char* name) const {
  require(color >= 0, "a negative color");
  MPI_Comm part = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(world_, color, key, &part), "MPI_Comm_split");
  return std::make_unique<MpiCommunicator>(part, MpiCommunicator::longest_piece, name);
}

void MpiSession::abort(int code) const {
  std::fflush(nullptr);
  MPI_Abort(world_, code);
  std::abort();
}

Groups make_groups(const MpiSession& session, const Grid& grid) {
  require(grid.ranks() == session.size(), "the grid does not have as many ranks as MPI");
  Groups groups;
  groups.grid = grid;
  groups.place = place_of(session.rank(), grid);
  groups.world = session.world();
  groups.tensor =
      grid.tp == 1 ? make_local_communicator() : session.split(groups.place.replica, 0, "its replica");
  groups.data =
      grid.dp == 1 ? make_local_communicator() : session.split(groups.place.tp_rank, 0, "the replicas");
  groups.raw_world = session.raw();
  return groups;
}

Groups make_local_groups() {
  Groups groups;
  groups.world = make_local_communicator();
  groups.tensor = make_local_communicator();
  groups.data = make_local_communicator();
  return groups;
}

}  // namespace sl
