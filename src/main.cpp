// The program: selflengthen COMMAND ... The only place where exceptions end. Exit codes: 0 done, 1 failed,
// 2 bad usage or input.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <thread>

#include "cli/commands.hpp"
#include "cli/launch.hpp"

namespace {

// This rank's number, also before MPI starts: as mpirun and srun tell it; none when run alone.
int rank_of_process() {
  if (const sl::MpiSession* session = sl::live_session()) return session->rank();
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"}) {
    if (const char* value = std::getenv(name)) return std::atoi(value);
  }
  return 0;
}

// One line on standard error. With several ranks all of them end here and now: others may be waiting for this
// one. What the user did wrong meets every rank alike as a rule: rank 0 gets some time to say it for all. It
// ends the others at once where MPI runs; before that the launcher does, a few seconds after rank 0 has left.
int fail(std::string message, int code) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  const sl::MpiSession* session = sl::live_session();
  const bool several = session && session->size() > 1;
  if (code == 2 && rank_of_process() > 0) {
    std::this_thread::sleep_for(std::chrono::seconds(several ? 1 : 5));
  }
  fmt::print(stderr, "selflengthen{}: {}\n", several ? fmt::format(" [rank {}]", session->rank()) : "",
             message);
  if (several) session->abort(code);
  sl::end_ranks();
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const int code = sl::run_command_line({argv + 1, argv + std::max(argc, 1)});
    sl::end_ranks();
    return code;
  } catch (const sl::InputError& error) {
    return fail(error.what(), 2);
  } catch (const std::bad_alloc&) {
    return fail("out of memory", 1);
  } catch (const std::exception& error) {
    return fail(error.what(), 1);
  }
}
