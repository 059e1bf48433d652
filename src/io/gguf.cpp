#include "io/gguf.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/error.hpp"
#include "io/gguf_quants.hpp"

namespace sl {
namespace {

constexpr const char* again = "download or convert the file again";

}  // namespace

// Walks through the header; every length is checked against what is left of the file before it is believed.
class GgufParser {
 public:
  explicit GgufParser(GgufFile& gguf) : gguf_(gguf), data_(gguf.file_.data()), size_(gguf.file_.size()) {}

  void parse() {
    if (size_ < 4 || std::memcmp(data_, "GGUF", 4) != 0) throw error("is not a GGUF file");
    at_ = 4;
    const auto version = number<uint32_t>("version");
    if (version == __builtin_bswap32(2) || version == __builtin_bswap32(3))
      throw error("is a big-endian file, which is not supported");
    if (version != 2 && version != 3)
      throw error(fmt::format("is of GGUF version {}, known are 2 and 3", version));
    const auto tensors = number<uint64_t>("number of tensors");
    const auto entries = number<uint64_t>("number of metadata entries");
    // An entry takes 12 bytes at least, a tensor 24: larger counts are lies, and must not be allocated.
    if (entries > left() / 12)
      throw error(fmt::format("its {} metadata entries end past the file's end", entries));
    for (uint64_t i = 0; i < entries; ++i) read_entry();
    if (tensors > left() / 24) throw error(fmt::format("its {} tensors end past the file's end", tensors));
    for (uint64_t i = 0; i < tensors; ++i) read_tensor();
    place_tensors();
  }

 private:
  InputError error(const std::string& what) const { return {what, gguf_.path(), again}; }
  uint64_t left() const { return size_ - at_; }

  template <typename T>
  T number(std::string_view what) {
    if (left() < sizeof(T)) throw error(fmt::format("ends inside its header (at {})", what));
    T value;
    std::memcpy(&value, data_ + at_, sizeof(value));
    at_ += sizeof(value);
    return value;
  }

  std::string string(std::string_view what) {
    const auto length = number<uint64_t>(what);
    if (length > left())
      throw error(fmt::format("a string of {} bytes ({}) ends past the file's end", length, what));
    std::string text(reinterpret_cast<const char*>(data_ + at_), length);
    at_ += length;
    return text;
  }

  void read_entry() {
    const std::string key = string("a metadata key");
    const auto type = number<uint32_t>(key);
    GgufValue value = type == 9 ? array(key) : scalar(type, key);
    if (!gguf_.metadata_.emplace(key, std::move(value)).second)
      throw error(fmt::format("metadata '{}' stands twice", key));
  }

  // Types 0-7 and 10-12: u8 i8 u16 i16 u32 i32 f32 bool, u64 i64 f64; 8 string.
  GgufValue scalar(uint32_t type, const std::string& key) {
    switch (type) {
      case 0:
        return int64_t{number<uint8_t>(key)};
      case 1:
        return int64_t{number<int8_t>(key)};
      case 2:
        return int64_t{number<uint16_t>(key)};
      case 3:
        return int64_t{number<int16_t>(key)};
      case 4:
        return int64_t{number<uint32_t>(key)};
      case 5:
        return int64_t{number<int32_t>(key)};
      case 6:
        return double{number<float>(key)};
      case 7:
        return number<uint8_t>(key) != 0;
      case 8:
        return string(key);
      case 10: {
        const auto value = number<uint64_t>(key);
        if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
          throw error(fmt::format("metadata '{}' is larger than 2^63", key));
        }
        return static_cast<int64_t>(value);
      }
      case 11:
        return number<int64_t>(key);
      case 12:
        return number<double>(key);
      default:
        throw error(fmt::format("metadata '{}' has unknown type {}", key, type));
    }
  }

  GgufValue array(const std::string& key) {
    const auto type = number<uint32_t>(key);
    const auto count = number<uint64_t>(key);
    if (type == 9) throw error(fmt::format("metadata '{}' is an array of arrays", key));
    if (count > left())
      throw error(fmt::format("metadata '{}' of {} elements ends past the file's end", key, count));
    if (type == 8) return elements<std::string>(type, count, key);
    if (type == 6 || type == 12) return elements<double>(type, count, key);
    return elements<int64_t>(type, count, key);
  }

  template <typename T>
  std::vector<T> elements(uint32_t type, uint64_t count, const std::string& key) {
    std::vector<T> values;
    for (uint64_t i = 0; i < count; ++i) {
      GgufValue value = scalar(type, key);
      if constexpr (std::is_same_v<T, int64_t>) {
        if (const bool* flag = std::get_if<bool>(&value)) value = int64_t{*flag};
      }
      values.push_back(std::move(std::get<T>(value)));
    }
    return values;
  }

  void read_tensor() {
    WeightInfo info;
    info.name = string("a tensor's name");
    const auto dimensions = number<uint32_t>(info.name);
    if (dimensions < 1 || dimensions > 4) {
      throw error(fmt::format("tensor '{}' has {} dimensions", info.name, dimensions));
    }
    uint64_t count = 1;
    for (uint32_t i = 0; i < dimensions; ++i) {
      const auto dim = number<uint64_t>(info.name);
      if (dim == 0 || dim > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
          __builtin_mul_overflow(count, dim, &count)) {
        throw error(fmt::format("tensor '{}' has an impossible shape", info.name));
      }
      info.shape.insert(info.shape.begin(), static_cast<int64_t>(dim));  // stored innermost first
    }
    const auto type = number<uint32_t>(info.name);
    const BlockFormat* format = block_format(type);
    if (format == nullptr) {
      throw InputError(
          fmt::format("tensor '{}' is of type {}, which is not supported", info.name, type_name(type)),
          gguf_.path(),
          "use a file of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K tensors");
    }
    if (info.shape.back() % format->elements != 0) {
      throw error(fmt::format("tensor '{}' of type {} has rows of {}, not a multiple of {}", info.name,
                              format->name, info.shape.back(), format->elements));
    }
    info.storage = format->name;
    if (!gguf_.index_.emplace(info.name, gguf_.tensors_.size()).second) {
      throw error(fmt::format("tensor '{}' stands twice", info.name));
    }
    gguf_.offsets_.push_back(number<uint64_t>(info.name));
    gguf_.types_.push_back(type);
    counts_.push_back(count);
    gguf_.tensors_.push_back(std::move(info));
  }

  // Offsets count from the first aligned byte after the header.
  void place_tensors() {
    const int64_t alignment = gguf_.find_integer("general.alignment").value_or(32);
    if (alignment <= 0 || alignment > (1 << 20)) throw error(fmt::format("has alignment {}", alignment));
    const auto step = static_cast<uint64_t>(alignment);
    const uint64_t begin = (at_ + step - 1) / step * step;
    for (size_t i = 0; i < gguf_.tensors_.size(); ++i) {
      const BlockFormat& format = *block_format(gguf_.types_[i]);
      const uint64_t blocks = counts_[i] / static_cast<uint64_t>(format.elements);
      uint64_t bytes = 0, end = 0;
      if (__builtin_mul_overflow(blocks, static_cast<uint64_t>(format.bytes), &bytes) ||
          __builtin_add_overflow(gguf_.offsets_[i], begin, &gguf_.offsets_[i]) ||
          __builtin_add_overflow(gguf_.offsets_[i], bytes, &end) || end > size_) {
        throw error(fmt::format("tensor '{}' lies past the file's end", gguf_.tensors_[i].name));
      }
    }
  }

  GgufFile& gguf_;
  const std::byte* data_;
  uint64_t size_;
  uint64_t at_ = 0;
  std::vector<uint64_t> counts_;  // elements of each tensor
};

GgufFile::GgufFile(const std::string& path) : file_(path) { GgufParser(*this).parse(); }

const WeightInfo* GgufFile::find(std::string_view name) const {
  const auto it = index_.find(std::string(name));
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

void GgufFile::read(std::string_view name, Block block, float* out) const {
  const WeightInfo* info = find(name);
  require(info != nullptr, "read of a tensor that is not there: " + std::string(name));
  const auto index = static_cast<size_t>(info - tensors_.data());
  const BlockFormat& format = *block_format(types_[index]);
  const int64_t columns = info->shape.back();
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < info->shape.size(); ++i) rows *= info->shape[i];
  require(block.inside(rows, columns), "read outside tensor " + info->name);
  const int64_t width = block.column_end - block.column_begin;
  if (width == 0) return;
  // Whole quantization blocks that cover the columns, then the part of them that was asked for.
  const int64_t first = block.column_begin / format.elements;
  const int64_t last = (block.column_end + format.elements - 1) / format.elements;
  const int64_t skip = block.column_begin - first * format.elements;
  const bool whole = skip == 0 && last * format.elements == block.column_end;
  std::vector<float> covering(whole ? 0 : static_cast<size_t>((last - first) * format.elements));
  for (int64_t row = block.row_begin; row < block.row_end; ++row, out += width) {
    const std::byte* source =
        file_.data() + offsets_[index] + (row * (columns / format.elements) + first) * format.bytes;
    float* decoded = whole ? out : covering.data();
    for (int64_t i = 0; i < last - first; ++i)
      format.decode(source + i * format.bytes, decoded + i * format.elements);
    if (!whole) std::copy_n(covering.data() + skip, width, out);
  }
}

template <typename T>
const T* GgufFile::find_as(const std::string& key, const char* kind) const {
  const auto it = metadata_.find(key);
  if (it == metadata_.end()) return nullptr;
  const T* value = std::get_if<T>(&it->second);
  if (value == nullptr) throw InputError(fmt::format("metadata '{}' is not {}", key, kind), path(), again);
  return value;
}

std::optional<std::string> GgufFile::find_string(const std::string& key) const {
  const auto* value = find_as<std::string>(key, "a string");
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::optional<int64_t> GgufFile::find_integer(const std::string& key) const {
  const auto* value = find_as<int64_t>(key, "an integer");
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::optional<double> GgufFile::find_float(const std::string& key) const {
  const auto it = metadata_.find(key);
  if (it != metadata_.end()) {
    if (const auto* integer = std::get_if<int64_t>(&it->second)) return static_cast<double>(*integer);
  }
  const auto* value = find_as<double>(key, "a number");
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::optional<bool> GgufFile::find_bool(const std::string& key) const {
  const auto* value = find_as<bool>(key, "true or false");
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::vector<std::string> GgufFile::find_strings(const std::string& key) const {
  const auto* value = find_as<std::vector<std::string>>(key, "a list of strings");
  return value == nullptr ? std::vector<std::string>() : *value;
}

std::vector<double> GgufFile::find_floats(const std::string& key) const {
  const auto* value = find_as<std::vector<double>>(key, "a list of floats");
  return value == nullptr ? std::vector<double>() : *value;
}

std::vector<int64_t> GgufFile::find_integers(const std::string& key) const {
  const auto* value = find_as<std::vector<int64_t>>(key, "a list of integers");
  return value == nullptr ? std::vector<int64_t>() : *value;
}

}  // namespace sl
