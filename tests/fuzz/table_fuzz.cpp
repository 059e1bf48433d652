// Tables and checkpoints in HDF5. Half of the inputs change bytes of a sound table, which its checksums
// mostly find; the others say what columns, types, lengths and attributes a file has, which HDF5 writes and
// seals itself.
#include <fuzzer/FuzzedDataProvider.h>

#include <iterator>

#include "fuzz.hpp"
#include "io/checkpoint.hpp"
#include "io/dataset.hpp"
#include "io/hdf5.hpp"

namespace sl {
namespace {

const std::string& sound_table() {
  static const std::string bytes = [] {
    Table table;
    table.add("text", std::vector<std::string>{"one", "", "three"});
    table.add("tokens", std::vector<std::vector<int32_t>>{{1, 2}, {}, {3}});
    table.add("count", std::vector<int64_t>{1, 2, 3});
    table.add("share", std::vector<double>{0.5, 0.25, 1.0});
    table.attributes["stage"] = "initial";
    const std::string path = fuzz::folder() + "/sound.h5";
    write_table(path, table, MPI_COMM_SELF);
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }();
  return bytes;
}

void put_changed(FuzzedDataProvider& choices, const std::string& name) {
  std::string bytes = sound_table();
  if (choices.ConsumeBool()) bytes.resize(choices.ConsumeIntegralInRange<size_t>(0, bytes.size()));
  while (choices.remaining_bytes() > 2 && !bytes.empty()) {
    const auto at = choices.ConsumeIntegralInRange<size_t>(0, bytes.size() - 1);
    bytes[at] = static_cast<char>(choices.ConsumeIntegral<uint8_t>());
  }
  fuzz::put(name, bytes);
}

void put_made(FuzzedDataProvider& choices, const std::string& path) {
  // As the files are written; a part of a list (a/bytes) needs its group first.
  const std::string names[] = {"a",         "b",         "a/bytes",   "a/values",
                               "a/offsets", "tensors/0", "b/offsets", "b/bytes"};
  const hid_t types[] = {H5T_NATIVE_INT64,  H5T_NATIVE_INT32, H5T_NATIVE_UCHAR,
                         H5T_NATIVE_DOUBLE, H5T_NATIVE_FLOAT, H5T_NATIVE_UINT64};
  H5File file = H5File::create(path, MPI_COMM_SELF);
  file.write_attribute(choices.ConsumeBool() ? "format" : "checkpoint_format", int64_t{1});
  file.write_attribute("rows", choices.ConsumeIntegralInRange<int64_t>(-1, 4));
  file.write_attribute("columns", choices.ConsumeRandomLengthString(12));
  if (choices.ConsumeBool()) file.write_attribute("user_x", choices.ConsumeRandomLengthString(4));
  if (choices.ConsumeBool()) file.write_attribute("user_y", int64_t{1});
  if (choices.ConsumeBool()) file.write_attribute("name_0", "w");
  for (const char* group : {"a", "b", "tensors"}) {
    if (choices.ConsumeBool()) file.make_group(group);
  }
  while (choices.remaining_bytes() > 0) {
    std::vector<hsize_t> shape(choices.ConsumeIntegralInRange<size_t>(1, 3));
    hsize_t total = 1;
    for (hsize_t& dim : shape) total *= dim = choices.ConsumeIntegralInRange<hsize_t>(0, 4);
    std::vector<uint64_t> values(64);
    for (uint64_t& value : values) value = choices.ConsumeIntegralInRange<uint64_t>(0, 5);
    values[0] = choices.ConsumeBool() ? choices.ConsumeIntegral<uint64_t>() : 0;
    const std::string& name = choices.PickValueInArray(names);
    const hid_t type = choices.PickValueInArray(types);
    try {
      file.write(name, type, shape, 0, total, values.data());
    } catch (const LibraryError&) {  // it is there already, or its group is not
    }
  }
  file.close();
}

}  // namespace
}  // namespace sl

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sl;
  FuzzedDataProvider choices(data, size);
  const std::string path = fuzz::folder() + "/table.h5";
  if (choices.ConsumeBool()) {
    put_changed(choices, "table.h5");
  } else {
    put_made(choices, path);
  }
  fuzz::accepted([&] { (void)read_table(path); });
  fuzz::accepted([&] { CheckpointFile(path).check(); });
  return 0;
}
