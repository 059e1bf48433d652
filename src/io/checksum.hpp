// CRC-32 where a format has no checksums of its own: in JSON objects and in safetensors files.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace sl {

uint32_t checksum(std::string_view bytes);
std::string checksum_digits(std::string_view bytes);  // 8 hexadecimal digits

// The object with a field "crc32" over its text without that field.
nlohmann::json sealed(nlohmann::json object);
enum class Seal : uint8_t { none, holds, broken };
Seal seal_of(nlohmann::json object);

// A safetensors file has its checksum in the metadata, over all its bytes with zeros for its digits; beside
// it may stand that of a text that belongs to it.
constexpr const char* no_digits = "00000000";
// Where the digits are in the file's first bytes, which hold the header; npos when there are none.
size_t place_of_digits(std::string_view header);

}  // namespace sl
