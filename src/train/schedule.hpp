// The learning rate over a training: linear warm-up, then half a cosine down to 0, as Transformers'
// get_cosine_schedule_with_warmup computes it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace sl {

// Steps of warm-up of `total`, as Transformers' Trainer rounds a ratio: up.
inline int64_t warmup_steps(int64_t total, double ratio) {
  return static_cast<int64_t>(std::ceil(static_cast<double>(total) * ratio));
}

// Factor of the learning rate in `step`, which counts from 0: the first step of a warm-up learns nothing.
inline double cosine_with_warmup(int64_t step, int64_t warmup, int64_t total) {
  if (step < warmup) return static_cast<double>(step) / static_cast<double>(std::max<int64_t>(1, warmup));
  const double progress =
      static_cast<double>(step - warmup) / static_cast<double>(std::max<int64_t>(1, total - warmup));
  return std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * progress)));
}

}  // namespace sl
