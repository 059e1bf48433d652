#include "core/rng.hpp"

#include "core/error.hpp"

namespace sl {
namespace {

// SplitMix64's finaliser (Steele, Lea, Flood 2014): mixes one field of an address into the hash of the
// others.
uint64_t mix(uint64_t hash, uint64_t field) {
  uint64_t z = hash + 0x9E3779B97F4A7C15ULL * (field + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

std::array<uint32_t, 4> block_at(uint64_t stream, uint64_t position) {
  return philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0},
                    {static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)});
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t low = uint64_t{0xD2511F53} * counter[0];
    const uint64_t high = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(high >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(high),
               static_cast<uint32_t>(low >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(low)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

uint64_t stream_of(const RandomAddress& address) {
  uint64_t hash = mix(0, address.seed);
  hash = mix(hash, static_cast<uint64_t>(address.iteration));
  hash = mix(hash, static_cast<uint64_t>(address.stage));
  hash = mix(hash, static_cast<uint64_t>(address.sample));
  hash = mix(hash, static_cast<uint64_t>(address.attempt));
  return mix(hash, static_cast<uint64_t>(address.turn));
}

float uniform_at(uint64_t stream, uint64_t position) {
  return static_cast<float>(block_at(stream, position)[0] >> 8) * 0x1.0p-24F;
}

Random::result_type Random::operator()() {
  if (next_ % 4 == 0) block_ = block_at(stream_, next_ / 4);
  return block_[next_++ % 4];
}

double Random::uniform() {
  const uint64_t high = (*this)();
  const uint64_t low = (*this)();
  return static_cast<double>((high << 21) ^ (low >> 11)) * 0x1.0p-53;
}

int64_t Random::below(int64_t bound) {
  require(bound > 0, "random draw below a bound that is not positive");
  // Rejection keeps it exactly uniform.
  const uint64_t range = static_cast<uint64_t>(bound);
  const uint64_t limit = UINT64_MAX - UINT64_MAX % range;
  uint64_t draw;
  do {
    const uint64_t high = (*this)();
    draw = (high << 32) | (*this)();
  } while (draw >= limit);
  return static_cast<int64_t>(draw % range);
}

}  // namespace sl
