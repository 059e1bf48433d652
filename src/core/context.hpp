// Context: on which device operations run, and how. Passed to every operation; cheap to copy.
#pragma once

#include "core/tensor.hpp"

namespace sl {

struct Context {
  Device device = Device::cpu;
  // Products and attention in a reduction order that depends on a row alone, not on the batch around it, so
  // that a row's bits do not change with its neighbours. Costs a little speed.
  bool deterministic = false;
};

}  // namespace sl
