// The block formats of GGML tensors that GGUF files hold: a block of `elements` numbers takes `bytes`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sl {

struct BlockFormat {
  uint32_t type;     // GGML's number
  const char* name;  // "Q4_1"
  int64_t elements;
  int64_t bytes;
  void (*decode)(const std::byte* block, float* out);  // one block
};

// nullptr for a type that is not supported.
const BlockFormat* block_format(uint32_t type);

// The name of any of GGML's types, "number 99" for one that we never heard of.
std::string type_name(uint32_t type);

}  // namespace sl
