// GGUF model files (versions 2 and 3, little-endian): metadata and tensors, dequantized when read.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "io/mapped_file.hpp"
#include "io/weights.hpp"

namespace sl {

using GgufValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>, std::vector<double>,
                               std::vector<std::string>>;

class GgufFile : public WeightFile {
 public:
  // Reads and checks the header; InputError names what is malformed, lies about sizes, or is of an unknown
  // type.
  explicit GgufFile(const std::string& path);

  const std::string& path() const override { return file_.path(); }
  const std::vector<WeightInfo>& tensors() const override { return tensors_; }
  const WeightInfo* find(std::string_view name) const override;
  void read(std::string_view name, Block block, float* out) const override;

  // Metadata. Nothing when the key is absent; InputError naming the key when it has another type.
  std::optional<std::string> find_string(const std::string& key) const;
  std::optional<int64_t> find_integer(const std::string& key) const;
  std::optional<double> find_float(const std::string& key) const;  // integers too
  std::optional<bool> find_bool(const std::string& key) const;
  std::vector<std::string> find_strings(const std::string& key) const;  // empty when absent
  std::vector<int64_t> find_integers(const std::string& key) const;     // empty when absent; of bools too
  std::vector<double> find_floats(const std::string& key) const;        // empty when absent
  const std::map<std::string, GgufValue>& metadata() const { return metadata_; }

 private:
  friend class GgufParser;
  template <typename T>
  const T* find_as(const std::string& key, const char* kind) const;

  MappedFile file_;
  std::map<std::string, GgufValue> metadata_;
  std::vector<WeightInfo> tensors_;
  std::vector<uint64_t> offsets_;  // in the file
  std::vector<uint32_t> types_;    // GGML type numbers
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace sl
