#include "io/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>

#include "core/error.hpp"
#include "core/json_depth.hpp"
#include "io/half.hpp"
#include "io/mapped_file.hpp"

namespace sl {
namespace {

using nlohmann::json;
constexpr const char* again = "download the file again";

// Product of the dimensions and the item size; InputError on overflow or a negative dimension.
uint64_t checked_bytes(const std::vector<int64_t>& shape, uint64_t item, const std::string& path,
                       const std::string& name) {
  uint64_t bytes = item;
  for (int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) {
      throw InputError(fmt::format("tensor '{}' has an impossible shape", name), path, again);
    }
  }
  return bytes;
}

uint64_t item_size(const std::string& dtype, const std::string& path, const std::string& name) {
  if (dtype == "F32") return 4;
  if (dtype == "F16" || dtype == "BF16") return 2;
  throw InputError(fmt::format("tensor '{}' is stored as '{}', which is not supported", name, dtype), path,
                   "convert the model to F32, F16 or BF16");
}

class SafetensorsFile : public WeightFile {
 public:
  explicit SafetensorsFile(const std::string& path) : file_(path) { parse(); }

  const std::string& path() const override { return file_.path(); }
  const std::vector<WeightInfo>& tensors() const override { return tensors_; }
  const WeightInfo* find(std::string_view name) const override {
    const auto it = index_.find(std::string(name));
    return it == index_.end() ? nullptr : &tensors_[it->second];
  }

  void read(std::string_view name, Block block, float* out) const override {
    const WeightInfo* info = find(name);
    require(info != nullptr, "read of a tensor that is not there: " + std::string(name));
    const int64_t columns = info->shape.empty() ? 1 : info->shape.back();
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < info->shape.size(); ++i) rows *= info->shape[i];
    require(block.inside(rows, columns), "read outside tensor " + info->name);
    const std::byte* data = file_.data() + offsets_[static_cast<size_t>(info - tensors_.data())];
    const int64_t width = block.column_end - block.column_begin;
    if (width == 0) return;  // of a tensor without columns a header may name any number of rows
    const int64_t item = info->storage == "F32" ? 4 : 2;
    for (int64_t row = block.row_begin; row < block.row_end; ++row, out += width) {
      const std::byte* source = data + (row * columns + block.column_begin) * item;
      if (item == 4) {
        std::memcpy(out, source, static_cast<size_t>(width) * 4);
        continue;
      }
      const bool bf16 = info->storage == "BF16";
      for (int64_t i = 0; i < width; ++i) {
        uint16_t bits;
        std::memcpy(&bits, source + 2 * i, 2);
        out[i] = bf16 ? bf16_to_float(bits) : half_to_float(bits);
      }
    }
  }

 private:
  void parse() {
    const std::string& path = file_.path();
    uint64_t header_size = 0;
    if (file_.size() < sizeof(header_size))
      throw InputError("is too short for a safetensors file", path, again);
    std::memcpy(&header_size, file_.data(), sizeof(header_size));
    if (header_size > file_.size() - sizeof(header_size)) {
      throw InputError(fmt::format("its header of {} bytes ends past the file's end", header_size), path,
                       again);
    }
    const char* text = reinterpret_cast<const char*>(file_.data()) + sizeof(header_size);
    if (nests_too_deep({text, header_size}))
      throw InputError("its header is JSON that nests too deep", path, again);
    std::set<std::string> names;
    bool repeated = false;
    // The parser keeps the last of two equal keys; a callback sees both.
    const json header = json::parse(
        text, text + header_size,
        [&](int depth, json::parse_event_t event, json& value) {
          if (depth == 1 && event == json::parse_event_t::key)
            repeated |= !names.insert(value.get<std::string>()).second;
          return true;
        },
        /*allow_exceptions=*/false);
    if (!header.is_object()) throw InputError("its header is not a JSON object", path, again);
    if (repeated) throw InputError("its header names a tensor twice", path, again);
    const uint64_t data_begin = sizeof(header_size) + header_size;
    const uint64_t data_size = file_.size() - data_begin;
    std::vector<std::pair<uint64_t, uint64_t>> spans;
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      add_tensor(name, entry, data_begin, data_size, spans);
    }
    std::sort(spans.begin(), spans.end());
    uint64_t end = 0;
    for (const auto& [begin, stop] : spans) {
      if (begin != end) {
        throw InputError(begin < end
                             ? "two tensors overlap in the file"
                             : fmt::format("bytes {} to {} of its data belong to no tensor", end, begin),
                         path, again);
      }
      end = stop;
    }
    if (end != data_size) {
      throw InputError(fmt::format("its tensors end at byte {} of {} data bytes", end, data_size), path,
                       again);
    }
  }

  void add_tensor(const std::string& name, const json& entry, uint64_t data_begin, uint64_t data_size,
                  std::vector<std::pair<uint64_t, uint64_t>>& spans) {
    const std::string& path = file_.path();
    const auto well_formed = [&] {
      if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string()) return false;
      if (!entry.contains("shape") || !entry["shape"].is_array()) return false;
      if (!entry.contains("data_offsets") || !entry["data_offsets"].is_array() ||
          entry["data_offsets"].size() != 2)
        return false;
      const auto unsigned_number = [](const json& value) { return value.is_number_unsigned(); };
      return std::all_of(entry["shape"].begin(), entry["shape"].end(), unsigned_number) &&
             std::all_of(entry["data_offsets"].begin(), entry["data_offsets"].end(), unsigned_number);
    };
    if (!well_formed())
      throw InputError(fmt::format("tensor '{}' has a malformed header entry", name), path, again);
    WeightInfo info{name, entry["shape"].get<std::vector<int64_t>>(), entry["dtype"].get<std::string>()};
    const uint64_t bytes = checked_bytes(info.shape, item_size(info.storage, path, name), path, name);
    const auto begin = entry["data_offsets"][0].get<uint64_t>();
    const auto end = entry["data_offsets"][1].get<uint64_t>();
    if (begin > end || end > data_size) {
      throw InputError(fmt::format("tensor '{}' lies past the file's end", name), path, again);
    }
    if (end - begin != bytes) {
      throw InputError(
          fmt::format("tensor '{}' has {} bytes where its shape needs {}", name, end - begin, bytes), path,
          again);
    }
    if (bytes > 0) spans.emplace_back(begin, end);
    index_[name] = tensors_.size();
    tensors_.push_back(std::move(info));
    offsets_.push_back(data_begin + begin);
  }

  MappedFile file_;
  std::vector<WeightInfo> tensors_;
  std::vector<uint64_t> offsets_;  // in the file, as tensors_
  std::unordered_map<std::string, size_t> index_;
};

// model.safetensors.index.json: {"weight_map": {tensor: file}}.
class ShardedSafetensors : public WeightFile {
 public:
  ShardedSafetensors(const std::string& folder, const std::string& index_path) : path_(index_path) {
    std::ifstream stream(index_path);
    const json index = json::parse(stream, nullptr, /*allow_exceptions=*/false);
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object() ||
        index["weight_map"].empty()) {
      throw InputError("holds no weight_map", index_path, again);
    }
    for (const auto& [name, shard] : index["weight_map"].items()) {
      if (!shard.is_string() || shard.get<std::string>().find('/') != std::string::npos) {
        throw InputError(fmt::format("tensor '{}' has no file name", name), index_path, again);
      }
      const std::string file = shard;
      std::error_code unreachable;  // a name too long, among others
      if (!std::filesystem::exists(folder + "/" + file, unreachable)) {
        throw InputError(fmt::format("tensor '{}' is in {}, which is missing", name, file), index_path,
                         "download the missing file");
      }
      if (!files_.contains(file))
        files_.emplace(file, std::make_unique<SafetensorsFile>(folder + "/" + file));
      const WeightFile* where = files_.at(file).get();
      const WeightInfo* info = where->find(name);
      if (info == nullptr) {
        throw InputError(fmt::format("tensor '{}' is not in {} as the index says", name, file), index_path,
                         again);
      }
      owner_[name] = where;
      tensors_.push_back(*info);
    }
  }

  const std::string& path() const override { return path_; }
  const std::vector<WeightInfo>& tensors() const override { return tensors_; }
  const WeightInfo* find(std::string_view name) const override {
    const auto it = owner_.find(std::string(name));
    return it == owner_.end() ? nullptr : it->second->find(name);
  }
  void read(std::string_view name, Block block, float* out) const override {
    const auto it = owner_.find(std::string(name));
    require(it != owner_.end(), "read of a tensor that is not there: " + std::string(name));
    it->second->read(name, block, out);
  }

 private:
  std::string path_;
  std::map<std::string, std::unique_ptr<SafetensorsFile>> files_;
  std::unordered_map<std::string, const WeightFile*> owner_;
  std::vector<WeightInfo> tensors_;
};

}  // namespace

std::unique_ptr<WeightFile> open_safetensors(const std::string& path) {
  if (!std::filesystem::is_directory(path)) return std::make_unique<SafetensorsFile>(path);
  const std::string index = path + "/model.safetensors.index.json";
  if (std::filesystem::exists(index)) return std::make_unique<ShardedSafetensors>(path, index);
  const std::string single = path + "/model.safetensors";
  if (std::filesystem::exists(single)) return std::make_unique<SafetensorsFile>(single);
  throw InputError("holds neither model.safetensors nor model.safetensors.index.json", path,
                   "give the folder of a Hugging Face model");
}

}  // namespace sl
