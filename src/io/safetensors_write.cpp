#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.hpp"
#include "io/durable.hpp"
#include "io/half.hpp"
#include "io/safetensors.hpp"

namespace sl {
namespace {

int64_t elements(const TensorToWrite& tensor) {
  int64_t size = 1;
  for (int64_t dim : tensor.shape) size *= dim;
  return size;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(std::string path, std::vector<TensorToWrite> declared,
                                     const std::map<std::string, std::string>& metadata)
    : path_(path), file_(std::move(path)), declared_(std::move(declared)) {
  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t offset = 0;
  for (const TensorToWrite& tensor : declared_) {
    require(!header.contains(tensor.name), "tensor declared twice for " + path_ + ": " + tensor.name);
    require(tensor.storage == "F32" || tensor.storage == "BF16" || tensor.storage == "F16",
            "no such storage of a safetensors file: " + tensor.storage);
    const int64_t bytes = elements(tensor) * (tensor.storage == "F32" ? 4 : 2);
    header[tensor.name] = {
        {"dtype", tensor.storage}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begins at a multiple of 8
  const uint64_t size = text.size();
  file_.write(&size, sizeof(size));
  file_.write(text.data(), text.size());
}

void SafetensorsWriter::add(const float* values) {
  require(next_ < declared_.size(), "more tensors than declared for " + path_);
  const TensorToWrite& tensor = declared_[next_++];
  const auto size = static_cast<size_t>(elements(tensor));
  if (tensor.storage == "F32") {
    file_.write(values, size * sizeof(float));
    return;
  }
  const bool bf16 = tensor.storage == "BF16";
  std::vector<uint16_t> halves(std::min<size_t>(size, 1U << 20));
  for (size_t begin = 0; begin < size; begin += halves.size()) {
    const size_t count = std::min(halves.size(), size - begin);
    for (size_t i = 0; i < count; ++i)
      halves[i] = bf16 ? float_to_bf16(values[begin + i]) : float_to_half(values[begin + i]);
    file_.write(halves.data(), count * sizeof(uint16_t));
  }
}

void SafetensorsWriter::close() {
  require(next_ == declared_.size(), "fewer tensors than declared for " + path_);
  file_.commit();
}

void write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  SafetensorsWriter writer(path, tensors, metadata);
  for (const TensorToWrite& tensor : tensors) writer.add(tensor.values);
  writer.close();
}

}  // namespace sl
