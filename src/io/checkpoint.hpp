// Checkpoints: named f32 tensors of a training. The numbers lie in parts, one file a rank, which a thread of
// that rank writes while training goes on (checkpoint_writer.hpp); the index, a small table at the
// checkpoint's own path, says in the shapes of whole tensors where each piece of them is, so that any process
// grid can read it. The index is written when all parts are durable: where it is, the checkpoint is whole.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace sl {

// Numbers begin .. begin + count, row by row, of columns column .. column + width of a tensor. Its rows are
// those of its last dimension; a vector is one row.
struct Strip {
  int64_t column = 0, width = 0;
  int64_t begin = 0, count = 0;
};

struct CheckpointPiece {
  std::string tensor;
  std::vector<int64_t> shape;  // of the whole tensor
  Strip strip;
  int64_t at = 0;      // number of the part at which it lies
  std::string part;    // file name, in the folder of the index
  uint32_t crc32 = 0;  // of its bytes
};

struct CheckpointIndex {
  std::string kind;                         // of what it is the state
  std::map<std::string, int64_t> integers;  // where that stands
  std::vector<CheckpointPiece> pieces;
};

// File name of a rank's part of the checkpoint at `path`; `tag` tells it from those of the one before.
std::string checkpoint_part(const std::string& path, int64_t tag, int rank);
// File names of the parts of `path` that are there, whole or not, in use or left over.
std::set<std::string> checkpoint_parts(const std::string& path);
// Whole and durable, or not there; then those of `before` that it does not name go. These are to be listed
// while no rank can have begun with its part of the next checkpoint. By one process.
void write_checkpoint_index(const std::string& path, const CheckpointIndex& index,
                            const std::set<std::string>& before = {});
// The index, its parts, and those that were never finished. By one process.
void remove_checkpoint(const std::string& path);

// A checkpoint to read from. InputErrors name the file, and the tensor where one is damaged or missing.
class CheckpointFile {
 public:
  explicit CheckpointFile(std::string path);

  const std::string& path() const { return path_; }
  const CheckpointIndex& index() const { return index_; }
  const std::map<std::string, std::vector<int64_t>>& shapes() const { return shapes_; }

  // These numbers of a tensor into `into`, the checksums of all pieces they are in checked.
  void read(const std::string& tensor, const Strip& wanted, float* into) const;
  std::vector<float> read(const std::string& tensor) const;  // whole
  // Reads piece `first` and every `stride`-th after it, and wants their checksums to hold.
  void check(int64_t first = 0, int64_t stride = 1) const;

 private:
  std::vector<float> read_piece(const CheckpointPiece& piece) const;

  std::string path_;
  CheckpointIndex index_;
  std::map<std::string, std::vector<int64_t>> shapes_;
  std::map<std::string, std::vector<size_t>> pieces_;  // of a tensor
};

// Whether `mine` of `stride` shares of the pieces of the checkpoint at `path` hold; what is wrong goes to the
// log as a warning. False when there is none.
bool holds_checkpoint(const std::string& path, int64_t mine = 0, int64_t stride = 1);

}  // namespace sl
