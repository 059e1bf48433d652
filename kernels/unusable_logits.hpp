// What is thrown when a row of logits has NaN or +infinity, or nothing finite.
#pragma once

#include "core/error.hpp"

namespace sl {

// Finite weights of sound size give logits that are numbers, so a file that holds others is the likely cause.
inline InputError unusable_logits() {
  return {"the logits are not numbers, or too large", "the model",
          "its weights or those of its adapter are damaged or not finite: use others"};
}

}  // namespace sl
