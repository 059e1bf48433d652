#include "io/checkpoint.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include "core/error.hpp"
#include "core/log.hpp"
#include "io/durable.hpp"
#include "io/hdf5.hpp"

namespace sl {
namespace {

constexpr int64_t checkpoint_format = 1;

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t size = 1;
  for (int64_t dim : shape) size *= dim;
  return size;
}

}  // namespace

void write_checkpoint(const std::string& path, const CheckpointContent& content) {
  const std::string temporary = path + ".partial";
  try {
    H5File file = H5File::create(temporary, MPI_COMM_SELF);
    for (const auto& [name, value] : content.integers) file.write_attribute("integer_" + name, value);
    for (const auto& [name, value] : content.texts) file.write_attribute("text_" + name, value);
    file.write_attribute("checkpoint_format", checkpoint_format);
    file.make_group("tensors");
    // Tensors are numbered: their names hold dots and slashes that would read as groups.
    for (size_t i = 0; i < content.tensors.size(); ++i) {
      const CheckpointTensor& tensor = content.tensors[i];
      require(elements(tensor.shape) == static_cast<int64_t>(tensor.values.size()),
              "values and shape of a checkpoint's tensor disagree: " + tensor.name);
      const std::vector<hsize_t> shape(tensor.shape.begin(), tensor.shape.end());
      file.write(fmt::format("tensors/{:06}", i), H5T_NATIVE_FLOAT, shape, 0, tensor.values.size(),
                 tensor.values.data());
      file.write_attribute(fmt::format("name_{:06}", i), tensor.name);
    }
    file.close();
    sync_file(temporary);
    rename_durably(temporary, path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

CheckpointContent read_checkpoint(const std::string& path) {
  const H5File file = H5File::open(path);
  if (!file.has_attribute("checkpoint_format") ||
      file.integer_attribute("checkpoint_format") != checkpoint_format) {
    throw InputError("is no checkpoint of this program, or of another version", path,
                     "give a checkpoint of a run folder");
  }
  CheckpointContent content;
  for (const std::string& name : file.attribute_names()) {
    if (name.starts_with("integer_")) content.integers[name.substr(8)] = file.integer_attribute(name);
    if (name.starts_with("text_")) content.texts[name.substr(5)] = file.string_attribute(name);
  }
  for (const std::string& number : file.names("tensors")) {
    CheckpointTensor tensor;
    tensor.name = file.string_attribute("name_" + number);
    for (hsize_t dim : file.shape("tensors/" + number)) tensor.shape.push_back(static_cast<int64_t>(dim));
    tensor.values.resize(static_cast<size_t>(elements(tensor.shape)));
    if (!tensor.values.empty())
      file.read("tensors/" + number, H5T_NATIVE_FLOAT, tensor.values.data(), "tensor " + tensor.name);
    content.tensors.push_back(std::move(tensor));
  }
  return content;
}

bool have_whole_checkpoint(const std::string& path) {
  if (::access(path.c_str(), F_OK) != 0) return false;
  try {
    (void)read_checkpoint(path);
    return true;
  } catch (const InputError& damage) {
    spdlog::warn("{}; its training begins anew", damage.what());
    ::unlink(path.c_str());
    return false;
  }
}

}  // namespace sl
