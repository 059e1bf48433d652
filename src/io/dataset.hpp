// Tables of a run as HDF5 files (doc/files.md). Text and token columns are stored as COLUMN/bytes (or
// COLUMN/values) and COLUMN/offsets (rows + 1), integer and float columns plainly; every chunk carries HDF5's
// checksum.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "core/error.hpp"
#include "io/table_layout.hpp"

namespace sl {

using Column = std::variant<std::vector<std::string>, std::vector<int64_t>, std::vector<double>,
                            std::vector<std::vector<int32_t>>>;

class Table {
 public:
  // All columns have as many rows as the first. Names are letters, digits and '_'.
  void add(std::string name, Column column);
  int64_t rows() const;
  bool has(const std::string& name) const;
  const std::vector<std::pair<std::string, Column>>& columns() const { return columns_; }

  // BugError when the column is missing or of another type.
  template <typename T>
  const std::vector<T>& column(const std::string& name) const {
    const auto* values = std::get_if<std::vector<T>>(&find(name));
    require(values != nullptr, "column of another type: " + name);
    return *values;
  }
  const std::vector<std::string>& texts(const std::string& name) const { return column<std::string>(name); }
  const std::vector<int64_t>& integers(const std::string& name) const { return column<int64_t>(name); }

  Table slice(int64_t begin, int64_t end) const;

  std::map<std::string, std::string> attributes;  // of the file

 private:
  const Column& find(const std::string& name) const;
  std::vector<std::pair<std::string, Column>> columns_;
};

// Collective over `comm`: the ranks hold consecutive slices of the rows, in rank order, with the same
// columns and attributes (else BugError on all). Parallel HDF5 writes together; a serial build gathers to
// rank 0. Under a temporary name, durable, then renamed: the file is whole or not there. A rank that cannot
// write throws LibraryError; when it was writing together with others, these wait for it until the job is
// aborted.
void write_table(const std::string& path, const Table& slice, MPI_Comm comm, const TableLayout& layout = {});

// The whole table. InputError names the file and the column when a checksum or a shape is wrong.
Table read_table(const std::string& path);

}  // namespace sl
