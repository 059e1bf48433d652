// Diagnostics on standard error through spdlog. Every rank may warn; only rank 0 informs, unless --verbose.
#pragma once

#include <spdlog/spdlog.h>

namespace sl {

// Once at start-up, before the first message. `level` is one of trace, debug, info, warn, error.
void start_log(int rank, int ranks, const std::string& level);

}  // namespace sl
