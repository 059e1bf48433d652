#include "text/byte_level.hpp"

#include "text/unicode.hpp"

#include <array>
#include <cstdint>

namespace sl {
namespace {

// Printable Latin-1 bytes stand for themselves; the other 68 are numbered from U+0100 in rising order.
bool stands_for_itself(int byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

constexpr size_t alphabet_end = 256 + 68;

std::array<int16_t, alphabet_end> make_table() {
  std::array<int16_t, alphabet_end> bytes{};
  bytes.fill(-1);
  size_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    bytes[stands_for_itself(byte) ? static_cast<size_t>(byte) : next++] = static_cast<int16_t>(byte);
  }
  return bytes;
}

}  // namespace

std::optional<std::string> bytes_of_byte_level(std::string_view token) {
  static const auto table = make_table();
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const CodePoint point = decode_at(token, at);
    at += static_cast<size_t>(point.length);
    if (point.value >= alphabet_end || table[point.value] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(table[point.value]));
  }
  return bytes;
}

}  // namespace sl
