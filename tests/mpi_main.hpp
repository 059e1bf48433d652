// For tests that run on several ranks.
#pragma once

#include "dist/communicator_mpi.hpp"

namespace sl {

// The session of the test program: there is one a process.
MpiSession& test_session();

}  // namespace sl
