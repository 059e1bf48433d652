// Addressed randomness: a draw is a pure function of where it is used, never of when, by which rank or in
// what order. Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3; SC
// 2011).
#pragma once

#include <array>
#include <cstdint>

namespace sl {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// The address of one attempt's draws. Two attempts with different addresses have independent streams.
struct RandomAddress {
  uint64_t seed = 0;
  int32_t iteration = 0;  // macro-iteration, from 1; 0 outside
  int32_t stage = 0;      // a Stage of lengthen/, or a caller's own number
  int64_t sample = 0;
  int32_t attempt = 0;
  int32_t turn = 0;  // which completion inside the attempt (micro-iteration and stage 1 or 2)
};

// 64 bits that name the stream of `address`; with the position in the text it keys every sampling draw.
uint64_t stream_of(const RandomAddress& address);

// Uniform in [0, 1) with 24 bits, as sampling kernels draw it: philox(counter = position, key = stream).
float uniform_at(uint64_t stream, uint64_t position);

// A sequential generator over one address, for host-side draws (shuffles, choices). Satisfies
// UniformRandomBitGenerator.
class Random {
 public:
  using result_type = uint32_t;
  explicit Random(const RandomAddress& address) : stream_(stream_of(address)) {}
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return UINT32_MAX; }
  result_type operator()();
  double uniform();              // [0, 1), 53 bits
  int64_t below(int64_t bound);  // uniform in [0, bound); bound > 0

 private:
  uint64_t stream_;
  uint64_t next_ = 0;
  std::array<uint32_t, 4> block_{};
};

}  // namespace sl
