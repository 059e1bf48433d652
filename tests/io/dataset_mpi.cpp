// Datasets written by several ranks together are, to the byte of their contents, those of one rank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "scratch.hpp"
#include "tables.hpp"
#include "tests/mpi_main.hpp"

namespace sl {
namespace {

using test::some_table;

class DatasetOnRanks : public testing::Test {
 protected:
  DatasetOnRanks()
      : comm_(test_session().raw()), rank_(test_session().rank()), ranks_(test_session().size()) {
    // One folder for all: rank 0 makes it.
    char name[512] = {};
    if (rank_ == 0) {
      scratch_ = std::make_unique<test::ScratchFolder>();
      std::strncpy(name, scratch_->path().c_str(), sizeof(name) - 1);
    }
    MPI_Bcast(name, sizeof(name), MPI_CHAR, 0, comm_);
    path_ = std::string(name) + "/initial.h5";
  }
  ~DatasetOnRanks() override { MPI_Barrier(comm_); }

  // Ranks begin at the rows `begin_of(rank)`; the last ends with the table.
  template <typename BeginOf>
  void write_and_compare(const Table& table, const BeginOf& begin_of, const TableLayout& layout = {}) {
    const int64_t end = rank_ + 1 == ranks_ ? table.rows() : begin_of(rank_ + 1);
    write_table(path_, table.slice(begin_of(rank_), end), comm_, layout);
    const Table read = read_table(path_);
    EXPECT_TRUE(read.columns() == table.columns());
    EXPECT_EQ(read.attributes, table.attributes);
    EXPECT_FALSE(std::filesystem::exists(path_ + ".partial"));
    MPI_Barrier(comm_);
  }

  MPI_Comm comm_;
  int rank_, ranks_;
  std::unique_ptr<test::ScratchFolder> scratch_;
  std::string path_;
};

TEST_F(DatasetOnRanks, EvenSlicesAreOneTable) {
  for (int64_t rows : {5, 64, 6000}) {  // the last: ranks meet inside of chunks of 1 MiB
    const Table table = some_table(rows, 21);
    for (const TableLayout& layout : {TableLayout{}, TableLayout{64, 64}, TableLayout{16, 256}})
      write_and_compare(
          table, [&](int rank) { return rows * rank / ranks_; }, layout);
  }
}

TEST_F(DatasetOnRanks, ARankMayHoldAllRowsOrNone) {
  const Table table = some_table(3000, 22);
  write_and_compare(table, [&](int rank) { return rank == 0 ? 0 : table.rows(); });  // all on the first
  write_and_compare(table, [&](int) { return int64_t{0}; });                         // all on the last
  write_and_compare(table, [&](int rank) { return std::min<int64_t>(rank, 2); });  // one, one, none, the rest
}

TEST_F(DatasetOnRanks, EmptyTablesAreWritten) {
  const Table table = some_table(0, 1);
  write_and_compare(table, [](int) { return int64_t{0}; });
  Table hollow;
  hollow.add("text", std::vector<std::string>(static_cast<size_t>(ranks_)));
  write_and_compare(hollow, [](int rank) { return int64_t{rank}; });
}

TEST_F(DatasetOnRanks, ColumnsThatDifferAreABugOnEveryRank) {
  if (ranks_ == 1) return;
  Table table = some_table(4, 1);
  if (rank_ == 1) table.attributes["stage"] = "another";
  EXPECT_THROW(write_table(path_, table, comm_), BugError);
  Table other;
  other.add(rank_ == 0 ? "a" : "b", std::vector<int64_t>(2));
  EXPECT_THROW(write_table(path_, other, comm_), BugError);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(DatasetOnRanks, AFailureIsEveryRanks) {
  const Table table = some_table(4, 1);
  EXPECT_THROW(write_table(path_ + ".no/initial.h5", table, comm_), LibraryError);
  // The rename is refused on the first rank, after a sound write.
  if (rank_ == 0) std::filesystem::create_directory(path_);
  MPI_Barrier(comm_);
  EXPECT_ANY_THROW(write_table(path_, table, comm_));
  MPI_Barrier(comm_);
  EXPECT_FALSE(std::filesystem::exists(path_ + ".partial"));
}

}  // namespace
}  // namespace sl
