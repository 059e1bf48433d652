// One rank's part of a checkpoint in two stages: a copy of its numbers in host memory, taken while training
// waits, and a thread that drains it into a file while training goes on.
#pragma once

#include <cstdint>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "core/buffer.hpp"
#include "io/checkpoint.hpp"

namespace sl {

class CheckpointWriter {
 public:
  // Takes the memory of the copy, `numbers` floats, once. `pieces` say which tensors lie where in it (`at`);
  // their `part` and `crc32` come with drained(). `device`: what the copy is made from.
  CheckpointWriter(Device device, int64_t numbers, std::vector<CheckpointPiece> pieces);
  // Gives up what is not drained yet; nothing of it is left on the disk.
  ~CheckpointWriter() = default;
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Not while it is draining.
  float* copy() const { return reinterpret_cast<float*>(copy_.data()); }
  // Starts to write the copy's pieces to `path`, a checkpoint_part().
  void drain(const std::string& path);
  bool draining() const { return drain_.valid(); }
  // Whether the part is durable under its name, after `seconds` at most. Then pieces() tell what is where.
  // Whatever kept the thread from writing (a full disk) is thrown, once.
  bool drained(double seconds);
  // Stops writing; waits for the call under way only.
  void give_up();

  const std::vector<CheckpointPiece>& pieces() const { return pieces_; }
  int64_t bytes() const;                       // of a part
  double seconds() const { return seconds_; }  // that the last drain took

 private:
  struct Drained {
    std::vector<uint32_t> checksums;
    double seconds = 0.0;
  };
  Drained write(const std::string& path, const std::stop_token& end) const;

  HostBuffer copy_;
  std::vector<CheckpointPiece> pieces_;  // in the order of the part
  std::vector<int64_t> sources_;         // where each lies in the copy
  double seconds_ = 0.0;
  std::future<Drained> drain_;
  std::jthread thread_;  // last: it uses the others
};

}  // namespace sl
