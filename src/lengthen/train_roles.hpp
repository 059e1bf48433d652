// Stage 4 of METHOD.md: supervised fine-tuning of a role from its adapter of the iteration before.
#pragma once

#include "io/dataset.hpp"
#include "lengthen/session.hpp"

namespace sl {

// Rows of `pairs`: user, assistant. Leaves the adapter in the run folder; returns at once when it is there.
// Collective over the world; continues from the last checkpoint. Throws Stopped on every rank when a signal
// asked for it, after saving a checkpoint.
void train_role(Session& session, int64_t iteration, Role role, const Table& pairs);

}  // namespace sl
