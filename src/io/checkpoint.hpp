// Checkpoints: named float tensors, each whole (in the model's shape, whatever the process grid), and
// attributes, in one HDF5 file with checksums.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace sl {

struct CheckpointTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

struct CheckpointContent {
  std::vector<CheckpointTensor> tensors;
  std::map<std::string, int64_t> integers;
  std::map<std::string, std::string> texts;
};

// By one process. Whole and durable, or not there.
void write_checkpoint(const std::string& path, const CheckpointContent& content);
// InputError names the file and the tensor when it is damaged.
CheckpointContent read_checkpoint(const std::string& path);
// Whether there is a whole one. A damaged one is removed with a warning: steps are lost, and taken again with
// the same result. By one process.
bool have_whole_checkpoint(const std::string& path);

}  // namespace sl
