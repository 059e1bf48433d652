// Weights in the safetensors format: reading one file or a sharded folder (F32, F16, BF16), and writing.
// Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, the data.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/durable.hpp"
#include "io/weights.hpp"

namespace sl {

// `path`: a .safetensors file, or a folder with model.safetensors or model.safetensors.index.json. InputError
// names the file and the tensor when a header is malformed, lies about sizes, or a shard is missing.
std::unique_ptr<WeightFile> open_safetensors(const std::string& path);

struct TensorToWrite {
  std::string name;
  std::vector<int64_t> shape;
  std::string storage;  // "F32", "BF16" or "F16"
  const float* values;  // row-major; may be null for SafetensorsWriter's declarations
};

// Writes one file tensor by tensor, in the declared order, under a temporary name; close() makes it durable
// and renames it. Without close() nothing is left behind. SystemError on a full disk.
class SafetensorsWriter {
 public:
  SafetensorsWriter(std::string path, std::vector<TensorToWrite> declared,
                    const std::map<std::string, std::string>& metadata);
  void add(const float* values);  // of the next declared tensor
  void close();

 private:
  std::string path_;
  DurableFile file_;
  std::vector<TensorToWrite> declared_;
  size_t next_ = 0;
};

// With a checksum in the metadata (io/checksum.hpp). F32 only.
void write_sealed_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                              std::map<std::string, std::string> metadata);
// InputError when such a file is not what was written, or the text of the file beside it, whose checksum
// stands in the metadata under "part_crc32".
void check_sealed_safetensors(const std::string& path, const std::string& beside, std::string_view text);

void write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace sl
