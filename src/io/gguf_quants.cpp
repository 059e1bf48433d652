#include "io/gguf_quants.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "io/half.hpp"

namespace sl {
namespace {

template <typename T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

float half_at(const std::byte* at) { return half_to_float(load<uint16_t>(at)); }
int byte_at(const std::byte* at) { return std::to_integer<int>(*at); }

void decode_f32(const std::byte* block, float* out) { *out = load<float>(block); }
void decode_f16(const std::byte* block, float* out) { *out = half_at(block); }
void decode_bf16(const std::byte* block, float* out) { *out = bf16_to_float(load<uint16_t>(block)); }

// Blocks of 32: element i in the low nibble of byte i, element i + 16 in its high nibble.
// Q4_0: scale, 16 bytes; value = scale * (q - 8).
void decode_q4_0(const std::byte* block, float* out) {
  const float scale = half_at(block);
  for (int i = 0; i < 16; ++i) {
    const int byte = byte_at(block + 2 + i);
    out[i] = static_cast<float>((byte & 15) - 8) * scale;
    out[i + 16] = static_cast<float>((byte >> 4) - 8) * scale;
  }
}

// Q4_1: scale, minimum, 16 bytes; value = scale * q + minimum.
void decode_q4_1(const std::byte* block, float* out) {
  const float scale = half_at(block);
  const float minimum = half_at(block + 2);
  for (int i = 0; i < 16; ++i) {
    const int byte = byte_at(block + 4 + i);
    out[i] = static_cast<float>(byte & 15) * scale + minimum;
    out[i + 16] = static_cast<float>(byte >> 4) * scale + minimum;
  }
}

// Q5_0: scale, 32 fifth bits, 16 bytes; value = scale * (q - 16).
void decode_q5_0(const std::byte* block, float* out) {
  const float scale = half_at(block);
  const auto fifth = load<uint32_t>(block + 2);
  for (int i = 0; i < 16; ++i) {
    const int byte = byte_at(block + 6 + i);
    const int low = (byte & 15) | static_cast<int>((fifth >> i) & 1U) << 4;
    const int high = (byte >> 4) | static_cast<int>((fifth >> (i + 16)) & 1U) << 4;
    out[i] = static_cast<float>(low - 16) * scale;
    out[i + 16] = static_cast<float>(high - 16) * scale;
  }
}

// Q5_1: scale, minimum, 32 fifth bits, 16 bytes; value = scale * q + minimum.
void decode_q5_1(const std::byte* block, float* out) {
  const float scale = half_at(block);
  const float minimum = half_at(block + 2);
  const auto fifth = load<uint32_t>(block + 4);
  for (int i = 0; i < 16; ++i) {
    const int byte = byte_at(block + 8 + i);
    const int low = (byte & 15) | static_cast<int>((fifth >> i) & 1U) << 4;
    const int high = (byte >> 4) | static_cast<int>((fifth >> (i + 16)) & 1U) << 4;
    out[i] = static_cast<float>(low) * scale + minimum;
    out[i + 16] = static_cast<float>(high) * scale + minimum;
  }
}

// Q8_0: scale, 32 signed bytes.
void decode_q8_0(const std::byte* block, float* out) {
  const float scale = half_at(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(load<int8_t>(block + 2 + i)) * scale;
}

// Q4_K and Q5_K: super-blocks of 8 groups of 32; 12 bytes hold a 6-bit scale and a 6-bit minimum for each
// group.
struct GroupScale {
  float scale, minimum;
};
GroupScale group_scale(const std::byte* packed, int group, float super_scale, float super_minimum) {
  int scale, minimum;
  if (group < 4) {
    scale = byte_at(packed + group) & 63;
    minimum = byte_at(packed + group + 4) & 63;
  } else {
    scale = (byte_at(packed + group + 4) & 15) | (byte_at(packed + group - 4) >> 6) << 4;
    minimum = (byte_at(packed + group + 4) >> 4) | (byte_at(packed + group) >> 6) << 4;
  }
  return {super_scale * static_cast<float>(scale), super_minimum * static_cast<float>(minimum)};
}

// Q4_K: two halves, packed scales, 128 bytes; groups 2j and 2j + 1 share 32 bytes (low and high nibbles).
void decode_q4_k(const std::byte* block, float* out) {
  const float scale = half_at(block);
  const float minimum = half_at(block + 2);
  for (int group = 0; group < 8; ++group) {
    const GroupScale g = group_scale(block + 4, group, scale, minimum);
    const std::byte* quants = block + 16 + 32 * (group / 2);
    for (int i = 0; i < 32; ++i) {
      const int q = group % 2 == 0 ? byte_at(quants + i) & 15 : byte_at(quants + i) >> 4;
      out[32 * group + i] = g.scale * static_cast<float>(q) - g.minimum;
    }
  }
}

// Q5_K: as Q4_K, with the fifth bit of element i of group g in bit g of byte i of 32 more bytes.
void decode_q5_k(const std::byte* block, float* out) {
  const float scale = half_at(block);
  const float minimum = half_at(block + 2);
  const std::byte* fifth = block + 16;
  for (int group = 0; group < 8; ++group) {
    const GroupScale g = group_scale(block + 4, group, scale, minimum);
    const std::byte* quants = block + 48 + 32 * (group / 2);
    for (int i = 0; i < 32; ++i) {
      const int low = group % 2 == 0 ? byte_at(quants + i) & 15 : byte_at(quants + i) >> 4;
      const int q = low | ((byte_at(fifth + i) >> group) & 1) << 4;
      out[32 * group + i] = g.scale * static_cast<float>(q) - g.minimum;
    }
  }
}

// Q6_K: 128 bytes of low nibbles, 64 of high bit pairs, 16 signed group scales (of 16 elements), one super
// scale.
void decode_q6_k(const std::byte* block, float* out) {
  const std::byte* low = block;
  const std::byte* high = block + 128;
  const std::byte* scales = block + 192;
  const float super_scale = half_at(block + 208);
  for (int element = 0; element < 256; ++element) {
    const int half = element / 128;
    const int quarter = element % 128 / 32;  // which of four interleaved runs of 32
    const int lane = element % 32;
    const int low_byte = byte_at(low + 64 * half + lane + 32 * (quarter % 2));
    const int nibble = quarter < 2 ? low_byte & 15 : low_byte >> 4;
    const int pair = (byte_at(high + 32 * half + lane) >> (2 * quarter)) & 3;
    const int q = (nibble | pair << 4) - 32;
    out[element] =
        super_scale * static_cast<float>(load<int8_t>(scales + element / 16)) * static_cast<float>(q);
  }
}

constexpr BlockFormat formats[] = {
    {0, "F32", 1, 4, decode_f32},        {1, "F16", 1, 2, decode_f16},
    {2, "Q4_0", 32, 18, decode_q4_0},    {3, "Q4_1", 32, 20, decode_q4_1},
    {6, "Q5_0", 32, 22, decode_q5_0},    {7, "Q5_1", 32, 24, decode_q5_1},
    {8, "Q8_0", 32, 34, decode_q8_0},    {12, "Q4_K", 256, 144, decode_q4_k},
    {13, "Q5_K", 256, 176, decode_q5_k}, {14, "Q6_K", 256, 210, decode_q6_k},
    {30, "BF16", 1, 2, decode_bf16},
};

// Types that files are met with and that we do not read, for the message that says so.
constexpr std::pair<uint32_t, const char*> unsupported[] = {
    {9, "Q8_1"},     {10, "Q2_K"},  {11, "Q3_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"},
    {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"},
    {24, "I8"},      {25, "I16"},   {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},
    {34, "TQ1_0"},   {35, "TQ2_0"}, {39, "MXFP4"},
};

}  // namespace

const BlockFormat* block_format(uint32_t type) {
  const auto* it =
      std::find_if(std::begin(formats), std::end(formats), [&](const auto& f) { return f.type == type; });
  return it == std::end(formats) ? nullptr : it;
}

std::string type_name(uint32_t type) {
  if (const BlockFormat* format = block_format(type)) return format->name;
  for (const auto& [number, name] : unsupported) {
    if (number == type) return name;
  }
  return "number " + std::to_string(type);
}

}  // namespace sl
