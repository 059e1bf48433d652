#include "io/hdf5.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/activity.hpp"
#include "core/error.hpp"

namespace sl {
namespace {

constexpr hsize_t checksum_bytes = 4;  // Fletcher32's, after each chunk
constexpr const char* replace_file = "the file is damaged or not ours: remove it and run again";

// The innermost message of HDF5's error stack.
std::string last_error() {
  std::string text = "unknown reason";
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned index, const H5E_error2_t* error, void* data) -> herr_t {
        if (index == 0 && error->desc != nullptr) *static_cast<std::string*>(data) = error->desc;
        return 0;
      },
      &text);
  return text;
}

// HDF5 prints its error stacks unless told not to. And when the process ends it closes again what it could
// not close before, on a full disk for instance, and crashes: we close our files ourselves.
void start_hdf5() {
  static const bool once = [] {
    H5dont_atexit();
    H5open();
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    return true;
  }();
  (void)once;
}

bool shared(MPI_Comm comm) {
  int initialised = 0, size = 1;
  MPI_Initialized(&initialised);
  if (initialised != 0 && MPI_Comm_size(comm, &size) != MPI_SUCCESS)
    throw LibraryError("MPI", "MPI_Comm_size", "no such communicator");
  return size > 1;
}

// Whole innermost rows where they fit into so many bytes.
std::vector<hsize_t> chunk_of(const std::vector<hsize_t>& shape, size_t item, hsize_t bytes) {
  std::vector<hsize_t> chunk(shape.size(), 1);
  hsize_t room = std::max<hsize_t>(1, (bytes - checksum_bytes) / item);
  for (size_t i = shape.size(); i-- > 0;) {
    chunk[i] = std::min(shape[i], room);
    room = std::max<hsize_t>(1, room / chunk[i]);
  }
  return chunk;
}

}  // namespace

bool parallel_hdf5() { return SELFLENGTHEN_PARALLEL_HDF5 != 0; }

void H5File::fail(const std::string& what) const {
  if (writing_) throw LibraryError("HDF5", what, path_ + ": " + last_error());
  throw InputError(fmt::format("{} failed ({})", what, last_error()), path_, replace_file);
}

void H5File::check(herr_t status, const std::string& what) const {
  if (status < 0) fail(what);
}

H5Handle H5File::own(hid_t id, herr_t (*closer)(hid_t), const std::string& what) const {
  if (id < 0) fail(what);
  return {id, closer};
}

H5File H5File::create(const std::string& path, MPI_Comm comm, const TableLayout& layout) {
  start_hdf5();
  require(layout.chunk_kib > 0 && layout.alignment_kib >= 0, "a layout of tables that is none");
  H5File made(path, parallel_hdf5() && shared(comm), true, static_cast<hsize_t>(layout.chunk_kib) << 10);
  const H5Handle access = made.own(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate");
  // The file format of HDF5 1.10: the first whose headers and chunk indexes all carry checksums. In older
  // ones a flipped bit in an index makes a chunk disappear, and what was in it reads as zeros.
  made.check(H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110), "H5Pset_libver_bounds");
  if (const auto alignment = static_cast<hsize_t>(layout.alignment_kib) << 10; alignment > 0)
    made.check(H5Pset_alignment(access, alignment / 2, alignment), "H5Pset_alignment");
#if SELFLENGTHEN_PARALLEL_HDF5
  if (made.collective_) made.check(H5Pset_fapl_mpio(access, comm, MPI_INFO_NULL), "H5Pset_fapl_mpio");
#endif
  const H5Handle creation = made.creation_without_times(H5P_FILE_CREATE);
  made.file_ = made.own(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, access), H5Fclose, "H5Fcreate");
  return made;
}

H5File H5File::open(const std::string& path) {
  start_hdf5();
  H5File opened(path, false, false, 0);
  const H5Handle access = opened.own(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "H5Pcreate");
#if H5_VERSION_GE(1, 10, 7)
  // Our files change by renaming alone; file systems without locks must not keep us from reading them.
  opened.check(H5Pset_file_locking(access, false, true), "H5Pset_file_locking");
#endif
  H5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
  if (!file.valid()) {
    throw InputError(fmt::format("is no readable HDF5 file ({})", last_error()), path, replace_file);
  }
  opened.file_ = std::move(file);
  return opened;
}

// Equal content is to give equal bytes, whenever it is written.
H5Handle H5File::creation_without_times(hid_t kind) const {
  H5Handle creation = own(H5Pcreate(kind), H5Pclose, "H5Pcreate");
  check(H5Pset_obj_track_times(creation, false), "H5Pset_obj_track_times");
  return creation;
}

void H5File::make_group(const std::string& name) {
  const H5Handle creation = creation_without_times(H5P_GROUP_CREATE);
  own(H5Gcreate2(file_, name.c_str(), H5P_DEFAULT, creation, H5P_DEFAULT), H5Gclose,
      "creating group " + name);
}

void H5File::write(const std::string& name, hid_t type, const std::vector<hsize_t>& shape, hsize_t begin,
                   hsize_t count, const void* values) {
  require(!shape.empty(), "a dataset without dimensions: " + name);
  activity().progress();
  const std::string what = "writing dataset " + name;
  hsize_t total = 1;
  for (hsize_t dim : shape) total *= dim;
  const auto dimensions = static_cast<int>(shape.size());
  const H5Handle layout = creation_without_times(H5P_DATASET_CREATE);
  const H5Handle space = own(H5Screate_simple(dimensions, shape.data(), nullptr), H5Sclose, what);
  if (total > 0) {
    const std::vector<hsize_t> chunk = chunk_of(shape, H5Tget_size(type), chunk_bytes_);
    check(H5Pset_chunk(layout, dimensions, chunk.data()), what);
    check(H5Pset_fletcher32(layout), what);
  }
  const H5Handle dataset =
      own(H5Dcreate2(file_, name.c_str(), type, space, H5P_DEFAULT, layout, H5P_DEFAULT), H5Dclose, what);
  if (total == 0) return;

  const H5Handle transfer = own(H5Pcreate(H5P_DATASET_XFER), H5Pclose, what);
#if SELFLENGTHEN_PARALLEL_HDF5
  if (collective_) check(H5Pset_dxpl_mpio(transfer, H5FD_MPIO_COLLECTIVE), what);
#endif
  // In memory as in the file: between spaces of different dimensions HDF5 goes number by number.
  const H5Handle memory = own(dimensions == 1 ? H5Screate_simple(1, &count, nullptr)
                                              : H5Screate_simple(dimensions, shape.data(), nullptr),
                              H5Sclose, what);
  if (count == 0) {
    check(H5Sselect_none(memory), what);
    check(H5Sselect_none(space), what);
  } else if (shape.size() == 1) {
    check(H5Sselect_hyperslab(space, H5S_SELECT_SET, &begin, nullptr, &count, nullptr), what);
  } else {
    require(begin == 0 && count == total, "a part of a dataset of several dimensions is not written");
  }
  check(H5Dwrite(dataset, type, memory, space, transfer, values), what);
}

H5Handle H5File::dataset(const std::string& name) const {
  return own(H5Dopen2(file_, name.c_str(), H5P_DEFAULT), H5Dclose, "opening dataset " + name);
}

std::vector<hsize_t> H5File::shape(const std::string& name) const {
  const std::string what = "reading the shape of " + name;
  const H5Handle data = dataset(name);
  const H5Handle space = own(H5Dget_space(data), H5Sclose, what);
  const H5Handle type = own(H5Dget_type(data), H5Tclose, what);
  const int dimensions = H5Sget_simple_extent_ndims(space);
  check(dimensions, what);
  std::vector<hsize_t> dims(static_cast<size_t>(dimensions));
  check(H5Sget_simple_extent_dims(space, dims.data(), nullptr), what);
  // A shape is believed when the file has the bytes for it: a chunk that is not there would read as zeros.
  hsize_t bytes = H5Tget_size(type);
  for (hsize_t dim : dims) {
    if (__builtin_mul_overflow(bytes, dim, &bytes)) bytes = ~hsize_t{0};
  }
  if (bytes > H5Dget_storage_size(data)) {
    throw InputError(fmt::format("dataset '{}' has fewer bytes than its shape needs", name), path_,
                     replace_file);
  }
  return dims;
}

void H5File::read(const std::string& name, hid_t type, void* values, const std::string& shown_as) const {
  activity().progress();
  const H5Handle data = dataset(name);
  check(H5Dread(data, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values),
        "reading " + (shown_as.empty() ? name : shown_as));
}

bool H5File::is_float(const std::string& name) const {
  const H5Handle data = dataset(name);
  const H5Handle type = own(H5Dget_type(data), H5Tclose, "reading the type of " + name);
  return H5Tget_class(type) == H5T_FLOAT;
}

bool H5File::has(const std::string& name) const { return H5Lexists(file_, name.c_str(), H5P_DEFAULT) > 0; }

void H5File::write_attribute(const std::string& name, const std::string& value) {
  const std::string what = "writing attribute " + name;
  const H5Handle type = own(H5Tcopy(H5T_C_S1), H5Tclose, what);
  check(H5Tset_size(type, std::max<size_t>(value.size(), 1)), what);
  check(H5Tset_cset(type, H5T_CSET_UTF8), what);
  check(H5Tset_strpad(type, H5T_STR_NULLPAD), what);
  write_attribute(name, type, type, value.c_str());
}

void H5File::write_attribute(const std::string& name, int64_t value) {
  write_attribute(name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void H5File::write_attribute(const std::string& name, hid_t file_type, hid_t memory_type, const void* value) {
  const std::string what = "writing attribute " + name;
  const H5Handle space = own(H5Screate(H5S_SCALAR), H5Sclose, what);
  const H5Handle attribute =
      own(H5Acreate2(file_, name.c_str(), file_type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, what);
  check(H5Awrite(attribute, memory_type, value), what);
}

bool H5File::has_attribute(const std::string& name) const { return H5Aexists(file_, name.c_str()) > 0; }

std::string H5File::string_attribute(const std::string& name) const {
  const std::string what = "reading text attribute " + name;
  const H5Handle attribute = own(H5Aopen(file_, name.c_str(), H5P_DEFAULT), H5Aclose, what);
  const H5Handle type = own(H5Aget_type(attribute), H5Tclose, what);
  const H5Handle space = own(H5Aget_space(attribute), H5Sclose, what);
  if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0 ||
      H5Sget_simple_extent_npoints(space) != 1)
    fail(what);
  std::string value(H5Tget_size(type), '\0');
  check(H5Aread(attribute, type, value.data()), what);
  if (value.size() == 1 && value[0] == '\0') value.clear();  // HDF5 has no empty strings
  return value;
}

int64_t H5File::integer_attribute(const std::string& name) const {
  const std::string what = "reading integer attribute " + name;
  const H5Handle attribute = own(H5Aopen(file_, name.c_str(), H5P_DEFAULT), H5Aclose, what);
  const H5Handle type = own(H5Aget_type(attribute), H5Tclose, what);
  const H5Handle space = own(H5Aget_space(attribute), H5Sclose, what);
  if (H5Tget_class(type) != H5T_INTEGER || H5Sget_simple_extent_npoints(space) != 1) fail(what);
  int64_t value = 0;
  check(H5Aread(attribute, H5T_NATIVE_INT64, &value), what);
  return value;
}

std::vector<std::string> H5File::attribute_names() const {
  std::vector<std::string> all;
  const auto take = [](hid_t, const char* name, const H5A_info_t*, void* data) -> herr_t {
    static_cast<std::vector<std::string>*>(data)->emplace_back(name);
    return 0;
  };
  check(H5Aiterate2(file_, H5_INDEX_NAME, H5_ITER_INC, nullptr, take, &all), "listing the attributes");
  return all;
}

std::vector<std::string> H5File::names(const std::string& group) const {
  const H5Handle handle =
      own(H5Gopen2(file_, group.c_str(), H5P_DEFAULT), H5Gclose, "opening group " + group);
  std::vector<std::string> all;
  const auto take = [](hid_t, const char* name, const H5L_info_t*, void* data) -> herr_t {
    static_cast<std::vector<std::string>*>(data)->emplace_back(name);
    return 0;
  };
  check(H5Literate(handle, H5_INDEX_NAME, H5_ITER_INC, nullptr, take, &all), "listing group " + group);
  return all;
}

void H5File::close() {
  check(H5Fflush(file_, H5F_SCOPE_GLOBAL), "H5Fflush");
  if (!file_.reset()) fail("H5Fclose");
}

}  // namespace sl
