// For tests on several ranks and every device: on GPUs each rank has one of its own, or they share those
// there are and speak through MPI.
#pragma once

#include <memory>

#include "dist/nccl.hpp"
#include "tests/kernels/on_devices.hpp"
#include "tests/mpi_main.hpp"

namespace sl::test {

class OnRanks : public OnDevices {
 protected:
  Context context() const {
    const int64_t gpus = std::max<int64_t>(1, gpu_count());
    return context_of(place(), static_cast<int>(test_session().node_rank() % gpus));
  }
  // All ranks in one group.
  std::unique_ptr<Communicator> world(const GpuCollectives& chosen = {}) const {
    return with_nccl(test_session().world(), context(), chosen);
  }
  Groups groups(const Grid& grid) const {
    Groups made = make_groups(test_session(), grid);
    made.tensor = with_nccl(std::move(made.tensor), context());
    made.data = with_nccl(std::move(made.data), context());
    return made;
  }
  // With every number of ranks a replica that is a power of two and divides those there are.
  static std::vector<Grid> grids() {
    std::vector<Grid> all;
    for (int tp = 1; tp <= test_session().size(); tp *= 2) {
      if (test_session().size() % tp == 0) all.push_back(grid_of(test_session().size(), tp));
    }
    return all;
  }
};

inline std::string describe(const Grid& grid) {
  return "dp " + std::to_string(grid.dp) + ", tp " + std::to_string(grid.tp);
}

}  // namespace sl::test
