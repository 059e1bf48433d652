// A thin, checked layer over HDF5's C API: handles that close themselves, errors that name the file.
#pragma once

#include <hdf5.h>
#include <mpi.h>

#include <string>
#include <utility>
#include <vector>

#include "io/table_layout.hpp"

namespace sl {

// Whether this build writes files collectively (parallel HDF5).
bool parallel_hdf5();

// Owns an HDF5 id. `close` is its H5?close.
class H5Handle {
 public:
  H5Handle() = default;
  H5Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~H5Handle() { reset(); }
  H5Handle(H5Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  H5Handle& operator=(H5Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  H5Handle(const H5Handle&) = delete;
  H5Handle& operator=(const H5Handle&) = delete;

  operator hid_t() const { return id_; }
  bool valid() const { return id_ >= 0; }
  // Forgets the id without closing it.
  void abandon() { id_ = -1; }
  // Closes now; false when that failed (data may not have reached the file).
  bool reset() {
    const bool closed = id_ < 0 || close_(id_) >= 0;
    id_ = -1;
    return closed;
  }

 private:
  hid_t id_ = -1;
  herr_t (*close_)(hid_t) = nullptr;
};

// An open HDF5 file and what may fail in it. Reading errors are InputErrors (the file is damaged), writing
// errors LibraryErrors.
class H5File {
 public:
  // A new file, replacing what is there. With a parallel build all ranks of `comm` create it together, and
  // all of them make every writing call below; without, or with a `comm` of one rank, the caller writes
  // alone.
  static H5File create(const std::string& path, MPI_Comm comm, const TableLayout& layout = {});
  static H5File open(const std::string& path);  // read only

  H5File(H5File&&) noexcept = default;
  H5File& operator=(H5File&&) = delete;
  // A file that an error leaves while it is written together is not closed: closing waits for the other
  // ranks, which may be waiting elsewhere, and this rank's error would never be told.
  ~H5File() {
    if (collective_) file_.abandon();
  }

  const std::string& path() const { return path_; }

  void make_group(const std::string& name);
  // Writes values begin .. begin + count of a new dataset, chunked, with Fletcher32 checksums. Parts are for
  // one dimension; count may be 0.
  void write(const std::string& name, hid_t type, const std::vector<hsize_t>& shape, hsize_t begin,
             hsize_t count, const void* values);
  // InputError when the file has fewer bytes than the shape needs: what it returns can be allocated.
  std::vector<hsize_t> shape(const std::string& name) const;
  // The whole dataset, checksums checked. `shown_as` names it in errors in place of `name`.
  void read(const std::string& name, hid_t type, void* values, const std::string& shown_as = "") const;
  bool has(const std::string& name) const;
  bool is_float(const std::string& name) const;  // a dataset of floating-point numbers

  void write_attribute(const std::string& name, const std::string& value);
  void write_attribute(const std::string& name, int64_t value);
  std::string string_attribute(const std::string& name) const;
  int64_t integer_attribute(const std::string& name) const;
  bool has_attribute(const std::string& name) const;
  std::vector<std::string> attribute_names() const;
  // Names below a group, in alphabetical order.
  std::vector<std::string> names(const std::string& group) const;

  void close();  // LibraryError when what was written did not reach the file

 private:
  H5File(std::string path, bool collective, bool writing, hsize_t chunk_bytes)
      : path_(std::move(path)), collective_(collective), writing_(writing), chunk_bytes_(chunk_bytes) {}
  [[noreturn]] void fail(const std::string& what) const;
  void check(herr_t status, const std::string& what) const;
  H5Handle own(hid_t id, herr_t (*closer)(hid_t), const std::string& what) const;
  H5Handle creation_without_times(hid_t kind) const;
  H5Handle dataset(const std::string& name) const;
  void write_attribute(const std::string& name, hid_t file_type, hid_t memory_type, const void* value);

  std::string path_;
  H5Handle file_;
  bool collective_ = false;
  bool writing_ = false;
  hsize_t chunk_bytes_ = 0;
};

}  // namespace sl
