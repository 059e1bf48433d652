#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.hpp"
#include "io/checksum.hpp"
#include "io/durable.hpp"
#include "io/half.hpp"
#include "io/mapped_file.hpp"
#include "io/safetensors.hpp"

namespace sl {
namespace {

int64_t elements(const TensorToWrite& tensor) {
  int64_t size = 1;
  for (int64_t dim : tensor.shape) size *= dim;
  return size;
}

// The file's bytes before the data.
std::string header_of(const std::vector<TensorToWrite>& declared,
                      const std::map<std::string, std::string>& metadata, const std::string& path) {
  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t offset = 0;
  for (const TensorToWrite& tensor : declared) {
    require(!header.contains(tensor.name), "tensor declared twice for " + path + ": " + tensor.name);
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
  return std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + text;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(std::string path, std::vector<TensorToWrite> declared,
                                     const std::map<std::string, std::string>& metadata)
    : path_(path), file_(std::move(path)), declared_(std::move(declared)) {
  const std::string header = header_of(declared_, metadata, path_);
  file_.write(header.data(), header.size());
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

void write_sealed_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                              std::map<std::string, std::string> metadata) {
  metadata["crc32"] = no_digits;
  const std::string header = header_of(tensors, metadata, path);
  uLong sum = crc32_z(0, reinterpret_cast<const Bytef*>(header.data()), header.size());
  for (const TensorToWrite& tensor : tensors) {
    require(tensor.storage == "F32", "a sealed file holds F32 alone");
    sum = crc32_z(sum, reinterpret_cast<const Bytef*>(tensor.values),
                  static_cast<size_t>(elements(tensor)) * sizeof(float));
  }
  metadata["crc32"] = fmt::format("{:08x}", sum);
  write_safetensors(path, tensors, metadata);
}

void check_sealed_safetensors(const std::string& path, const std::string& beside, std::string_view text) {
  constexpr const char* remedy =
      "remove its folder and give the same command again: the role is trained anew";
  (void)open_safetensors(path);  // says more of a header that does not hold
  const MappedFile file(path);
  std::string bytes(reinterpret_cast<const char*>(file.data()), file.size());
  const size_t digits = place_of_digits(bytes);
  if (digits == std::string::npos) throw InputError("its checksum is missing", path, remedy);
  const std::string expected = bytes.substr(digits, 8);
  bytes.replace(digits, 8, no_digits);
  if (checksum_digits(bytes) != expected) throw InputError("its checksum is wrong", path, remedy);
  const std::string key = "\"part_crc32\":\"" + checksum_digits(text) + "\"";
  if (bytes.find(key) == std::string::npos) throw InputError("is not what was written", beside, remedy);
}

}  // namespace sl
