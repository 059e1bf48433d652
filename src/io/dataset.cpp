#include "io/dataset.hpp"

#include <fmt/format.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <optional>

#include "core/activity.hpp"
#include "core/error.hpp"
#include "io/durable.hpp"
#include "io/hdf5.hpp"

namespace sl {
namespace {

constexpr int64_t dataset_format = 1;

int64_t rows_of(const Column& column) {
  return std::visit([](const auto& values) { return static_cast<int64_t>(values.size()); }, column);
}

// Errors of MPI are returned to us where the owner of the communicator wants it so.
void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw LibraryError("MPI", call, text);
}

// Ranks of a table that is written together; alone when MPI was not started.
struct Writers {
  explicit Writers(MPI_Comm communicator) : comm(communicator) {
    int initialised = 0;
    check_mpi(MPI_Initialized(&initialised), "MPI_Initialized");
    if (initialised == 0) return;
    check_mpi(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  }
  // Where this rank's `count` things begin among all ranks', and the number of all.
  std::pair<int64_t, int64_t> place(int64_t count) const {
    if (size == 1) return {0, count};
    int64_t begin = 0, total = 0;
    check_mpi(MPI_Exscan(&count, &begin, 1, MPI_INT64_T, MPI_SUM, comm), "MPI_Exscan");
    check_mpi(MPI_Allreduce(&count, &total, 1, MPI_INT64_T, MPI_SUM, comm), "MPI_Allreduce");
    return {rank == 0 ? 0 : begin, total};
  }
  void barrier() const {
    if (size > 1) check_mpi(MPI_Barrier(comm), "MPI_Barrier");
  }
  MPI_Comm comm;
  int rank = 0, size = 1;
};

// A column flattened: values one after the other, and where each row begins.
template <typename T>
struct Flat {
  std::vector<T> values;
  std::vector<int64_t> lengths;
};

Flat<char> flatten(const std::vector<std::string>& rows) {
  Flat<char> flat;
  for (const std::string& row : rows) {
    flat.values.insert(flat.values.end(), row.begin(), row.end());
    flat.lengths.push_back(static_cast<int64_t>(row.size()));
  }
  return flat;
}

Flat<int32_t> flatten(const std::vector<std::vector<int32_t>>& rows) {
  Flat<int32_t> flat;
  for (const auto& row : rows) {
    flat.values.insert(flat.values.end(), row.begin(), row.end());
    flat.lengths.push_back(static_cast<int64_t>(row.size()));
  }
  return flat;
}

class TableWriter {
 public:
  TableWriter(H5File& file, const Writers& writers) : file_(file), writers_(writers) {}

  void operator()(const std::string& name, const std::vector<int64_t>& values) {
    plain(name, H5T_NATIVE_INT64, values);
  }
  void operator()(const std::string& name, const std::vector<double>& values) {
    plain(name, H5T_NATIVE_DOUBLE, values);
  }
  void operator()(const std::string& name, const std::vector<std::string>& rows) {
    file_.make_group(name);
    lists(name, "bytes", H5T_NATIVE_UCHAR, flatten(rows));
  }
  void operator()(const std::string& name, const std::vector<std::vector<int32_t>>& rows) {
    file_.make_group(name);
    lists(name, "values", H5T_NATIVE_INT32, flatten(rows));
  }

 private:
  template <typename T>
  void plain(const std::string& name, hid_t type, const std::vector<T>& values) {
    const auto [begin, total] = writers_.place(static_cast<int64_t>(values.size()));
    file_.write(name, type, {static_cast<hsize_t>(total)}, static_cast<hsize_t>(begin), values.size(),
                values.data());
  }

  template <typename T>
  void lists(const std::string& name, const char* part, hid_t type, const Flat<T>& flat) {
    const auto [value_begin, value_total] = writers_.place(static_cast<int64_t>(flat.values.size()));
    const auto [row_begin, row_total] = writers_.place(static_cast<int64_t>(flat.lengths.size()));
    file_.write(name + "/" + part, type, {static_cast<hsize_t>(value_total)},
                static_cast<hsize_t>(value_begin), flat.values.size(), flat.values.data());
    // Each rank writes the ends of its rows; rank 0 the leading zero too.
    std::vector<int64_t> offsets;
    if (writers_.rank == 0) offsets.push_back(0);
    int64_t end = value_begin;
    for (int64_t length : flat.lengths) offsets.push_back(end += length);
    file_.write(name + "/offsets", H5T_NATIVE_INT64, {static_cast<hsize_t>(row_total + 1)},
                static_cast<hsize_t>(row_begin + (writers_.rank == 0 ? 0 : 1)), offsets.size(),
                offsets.data());
  }

  H5File& file_;
  const Writers& writers_;
};

void write_file(const std::string& path, const Table& slice, const TableLayout& layout,
                const Writers& writers) {
  H5File file = H5File::create(path, writers.comm, layout);
  file.write_attribute("format", dataset_format);
  file.write_attribute("rows", writers.place(slice.rows()).second);
  for (const auto& [name, value] : slice.attributes) file.write_attribute("user_" + name, value);
  std::string order;
  for (const auto& [name, column] : slice.columns()) order += (order.empty() ? "" : ",") + name;
  file.write_attribute("columns", order);
  TableWriter write(file, writers);
  for (const auto& [name, column] : slice.columns()) {
    std::visit([&, &n = name](const auto& values) { write(n, values); }, column);
  }
  file.close();
}

// Serial HDF5: rank 0 receives the others' slices column by column.
template <typename T>
std::vector<T> gather_values(const std::vector<T>& mine, const Writers& writers) {
  std::vector<T> all = mine;
  constexpr int64_t piece = (int64_t{1} << 28) / static_cast<int64_t>(sizeof(T));
  for (int rank = 1; rank < writers.size; ++rank) {
    auto count = static_cast<int64_t>(mine.size());
    if (writers.rank == rank) check_mpi(MPI_Send(&count, 1, MPI_INT64_T, 0, 0, writers.comm), "MPI_Send");
    if (writers.rank == 0)
      check_mpi(MPI_Recv(&count, 1, MPI_INT64_T, rank, 0, writers.comm, MPI_STATUS_IGNORE), "MPI_Recv");
    if (writers.rank != 0 && writers.rank != rank) continue;
    const size_t begin = all.size();
    if (writers.rank == 0) all.resize(begin + static_cast<size_t>(count));
    for (int64_t at = 0; at < count; at += piece) {
      const auto bytes = static_cast<int>(std::min(piece, count - at) * static_cast<int64_t>(sizeof(T)));
      if (writers.rank == rank)
        check_mpi(MPI_Send(mine.data() + at, bytes, MPI_BYTE, 0, 0, writers.comm), "MPI_Send");
      if (writers.rank == 0) {
        check_mpi(
            MPI_Recv(all.data() + begin + at, bytes, MPI_BYTE, rank, 0, writers.comm, MPI_STATUS_IGNORE),
            "MPI_Recv");
      }
    }
  }
  return all;
}

Table gather_table(const Table& slice, const Writers& writers) {
  Table whole;
  whole.attributes = slice.attributes;
  for (const auto& [name, column] : slice.columns()) {
    if (const auto* integers = std::get_if<std::vector<int64_t>>(&column)) {
      whole.add(name, gather_values(*integers, writers));
    } else if (const auto* floats = std::get_if<std::vector<double>>(&column)) {
      whole.add(name, gather_values(*floats, writers));
    } else if (const auto* texts = std::get_if<std::vector<std::string>>(&column)) {
      const Flat<char> flat = flatten(*texts);
      const auto values = gather_values(flat.values, writers);
      std::vector<std::string> rows;
      const char* next = values.data();
      for (int64_t length : gather_values(flat.lengths, writers)) {
        rows.emplace_back(next, static_cast<size_t>(length));
        next += length;
      }
      whole.add(name, std::move(rows));
    } else {
      const Flat<int32_t> flat = flatten(std::get<std::vector<std::vector<int32_t>>>(column));
      const auto values = gather_values(flat.values, writers);
      std::vector<std::vector<int32_t>> rows;
      const int32_t* next = values.data();
      for (int64_t length : gather_values(flat.lengths, writers)) {
        rows.emplace_back(next, next + length);
        next += length;
      }
      whole.add(name, std::move(rows));
    }
  }
  return whole;
}

// What rank 0 does for all: when it fails there, every rank throws.
void on_first_rank(const Writers& writers, const std::string& path, const std::function<void()>& action) {
  std::exception_ptr failure;
  if (writers.rank == 0) {
    try {
      action();
    } catch (...) {
      failure = std::current_exception();
    }
  }
  int failed = failure ? 1 : 0;
  if (writers.size > 1) check_mpi(MPI_Bcast(&failed, 1, MPI_INT, 0, writers.comm), "MPI_Bcast");
  if (failure) std::rethrow_exception(failure);
  if (failed != 0) throw LibraryError("HDF5", "write_table", path + ": the first rank could not write it");
}

// Ranks that disagree about the columns would wait for each other for ever in the collective calls.
void require_same_layout(const Table& slice, const Writers& writers) {
  if (writers.size == 1) return;
  std::string layout;
  for (const auto& [name, column] : slice.columns()) layout += fmt::format("{}:{},", name, column.index());
  for (const auto& [name, value] : slice.attributes) layout += fmt::format("{}={};", name, value);
  const auto hash = static_cast<int64_t>(
      crc32(0, reinterpret_cast<const Bytef*>(layout.data()), static_cast<uInt>(layout.size())));
  const int64_t mine[2] = {hash, -hash};
  int64_t all[2] = {};
  check_mpi(MPI_Allreduce(mine, all, 2, MPI_INT64_T, MPI_MAX, writers.comm), "MPI_Allreduce");
  require(all[0] == -all[1], "the ranks disagree about the columns or attributes of a table");
}

template <typename T>
std::vector<T> read_column(const H5File& file, const std::string& name, hid_t type) {
  const std::vector<hsize_t> shape = file.shape(name);
  if (shape.size() != 1)
    throw InputError(fmt::format("column '{}' is not one-dimensional", name), file.path(),
                     "remove the file and run again");
  std::vector<T> values(shape[0]);
  if (!values.empty()) file.read(name, type, values.data());
  return values;
}

template <typename Row, typename T>
std::vector<Row> read_lists(const H5File& file, const std::string& name, const char* part, hid_t type) {
  const auto values = read_column<T>(file, name + "/" + part, type);
  const auto offsets = read_column<int64_t>(file, name + "/offsets", H5T_NATIVE_INT64);
  std::vector<Row> rows;
  const bool sound = !offsets.empty() && offsets.front() == 0 &&
                     std::is_sorted(offsets.begin(), offsets.end()) &&
                     offsets.back() == static_cast<int64_t>(values.size());
  if (!sound)
    throw InputError(fmt::format("column '{}' has impossible offsets", name), file.path(),
                     "remove the file and run again");
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    rows.emplace_back(values.begin() + offsets[i], values.begin() + offsets[i + 1]);
  }
  return rows;
}

}  // namespace

void Table::add(std::string name, Column column) {
  require(!has(name), "column added twice: " + name);
  require(columns_.empty() || rows_of(column) == rows(), "column of another length: " + name);
  columns_.emplace_back(std::move(name), std::move(column));
}

int64_t Table::rows() const { return columns_.empty() ? 0 : rows_of(columns_.front().second); }

bool Table::has(const std::string& name) const {
  return std::any_of(columns_.begin(), columns_.end(),
                     [&](const auto& column) { return column.first == name; });
}

const Column& Table::find(const std::string& name) const {
  for (const auto& [own, column] : columns_) {
    if (own == name) return column;
  }
  throw BugError("no column " + name);
}

Table Table::slice(int64_t begin, int64_t end) const {
  require(0 <= begin && begin <= end && end <= rows(), "slice outside the table");
  Table part;
  part.attributes = attributes;
  for (const auto& [name, column] : columns_) {
    std::visit(
        [&, &n = name](const auto& values) {
          part.add(n, std::decay_t<decltype(values)>(values.begin() + begin, values.begin() + end));
        },
        column);
  }
  return part;
}

void write_table(const std::string& path, const Table& slice, MPI_Comm comm, const TableLayout& layout) {
  const Writers writers(comm);
  std::optional<Waiting> together;
  if (writers.size > 1) together.emplace("writing a table", "all ranks");
  require_same_layout(slice, writers);
  const std::string temporary = path + ".partial";
  try {
    if (parallel_hdf5() || writers.size == 1) {
      write_file(temporary, slice, layout, writers);
    } else {
      const Table whole = gather_table(slice, writers);
      on_first_rank(writers, path, [&] { write_file(temporary, whole, layout, Writers(MPI_COMM_SELF)); });
    }
    writers.barrier();  // the file is complete when every rank has closed it
    on_first_rank(writers, path, [&] {
      sync_file(temporary);
      rename_durably(temporary, path);
    });
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

Table read_table(const std::string& path) {
  const H5File file = H5File::open(path);
  if (!file.has_attribute("format") || file.integer_attribute("format") != dataset_format) {
    throw InputError("is no dataset of this program, or of another version", path,
                     "use a dataset of a run folder; if it was one, remove it and run again");
  }
  Table table;
  const auto add = [&](const std::string& name, Column column) {
    if (!table.columns().empty() && rows_of(column) != table.rows()) {
      throw InputError(
          fmt::format("column '{}' has {} rows, those before it {}", name, rows_of(column), table.rows()),
          path, "remove the file and run again");
    }
    table.add(name, std::move(column));
  };
  const std::string order = file.string_attribute("columns");
  for (size_t begin = 0; begin < order.size();) {
    const size_t end = std::min(order.find(',', begin), order.size());
    const std::string name = order.substr(begin, end - begin);
    begin = end + 1;
    if (table.has(name))
      throw InputError(fmt::format("column '{}' is named twice", name), path,
                       "remove the file and run again");
    if (!file.has(name))
      throw InputError(fmt::format("column '{}' is missing", name), path, "remove the file and run again");
    if (file.has(name + "/bytes")) {
      add(name, read_lists<std::string, char>(file, name, "bytes", H5T_NATIVE_UCHAR));
    } else if (file.has(name + "/values")) {
      add(name, read_lists<std::vector<int32_t>, int32_t>(file, name, "values", H5T_NATIVE_INT32));
    } else if (file.is_float(name)) {
      add(name, read_column<double>(file, name, H5T_NATIVE_DOUBLE));
    } else {
      add(name, read_column<int64_t>(file, name, H5T_NATIVE_INT64));
    }
  }
  if (table.rows() != file.integer_attribute("rows"))
    throw InputError("has fewer rows than it says", path, "remove the file and run again");
  for (const std::string& name : file.attribute_names()) {
    if (name.starts_with("user_")) table.attributes[name.substr(5)] = file.string_attribute(name);
  }
  return table;
}

}  // namespace sl
