#include "io/checksum.hpp"

#include <fmt/format.h>
#include <zlib.h>

namespace sl {
namespace {

std::string text_of(const nlohmann::json& object) {
  return object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

uint32_t checksum(std::string_view bytes) {
  return static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

std::string checksum_digits(std::string_view bytes) { return fmt::format("{:08x}", checksum(bytes)); }

nlohmann::json sealed(nlohmann::json object) {
  object.erase("crc32");
  object["crc32"] = checksum_digits(text_of(object));
  return object;
}

Seal seal_of(nlohmann::json object) {
  const auto found = object.find("crc32");
  if (found == object.end()) return Seal::none;
  const nlohmann::json given = *found;
  object.erase("crc32");
  return given == checksum_digits(text_of(object)) ? Seal::holds : Seal::broken;
}

size_t place_of_digits(std::string_view header) {
  constexpr std::string_view key = "\"crc32\":\"";
  const size_t found = header.find(key);
  const bool inside = found != std::string_view::npos && found + key.size() + 8 <= header.size();
  return inside ? found + key.size() : std::string_view::npos;
}

}  // namespace sl
