// The byte-level alphabet of GPT-2's tokenizer files: each byte is written as one printable character, so
// that a token of arbitrary bytes is a readable string ("Ġthe" is " the").
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace sl {

// The bytes that `token` stands for; nothing when it holds a character outside the alphabet.
std::optional<std::string> bytes_of_byte_level(std::string_view token);

}  // namespace sl
