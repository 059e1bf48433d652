#include "io/checkpoint_writer.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <utility>

#include "core/error.hpp"
#include "core/thread.hpp"
#include "io/checksum.hpp"
#include "io/durable.hpp"

namespace sl {
namespace {

constexpr int64_t numbers_of_piece = int64_t{1} << 20;  // of a piece: 4 MiB, read and checked whole

}  // namespace

CheckpointWriter::CheckpointWriter(Device device, int64_t numbers, std::vector<CheckpointPiece> pieces)
    : copy_(device, numbers * size_of(DType::f32), "checkpoint") {
  // The first copy is not to wait for the system to find the pages.
  if (numbers > 0) std::memset(copy_.data(), 0, static_cast<size_t>(numbers * size_of(DType::f32)));
  int64_t at = 0;
  for (const CheckpointPiece& whole : pieces) {
    require(whole.at >= 0 && whole.at + whole.strip.count <= numbers, "a piece outside of the copy");
    for (int64_t begin = 0; begin < whole.strip.count; begin += numbers_of_piece) {
      CheckpointPiece piece = whole;
      piece.strip.begin += begin;
      piece.strip.count = std::min(numbers_of_piece, whole.strip.count - begin);
      piece.at = at;
      at += piece.strip.count;
      sources_.push_back(whole.at + begin);
      pieces_.push_back(std::move(piece));
    }
  }
}

int64_t CheckpointWriter::bytes() const {
  return pieces_.empty() ? 0 : (pieces_.back().at + pieces_.back().strip.count) * size_of(DType::f32);
}

CheckpointWriter::Drained CheckpointWriter::write(const std::string& path, const std::stop_token& end) const {
  const auto begin = std::chrono::steady_clock::now();
  Drained result;
  if (pieces_.empty()) return result;
  DurableFile file(path);
  for (size_t i = 0; i < pieces_.size() && !end.stop_requested(); ++i) {
    const std::string_view bytes(reinterpret_cast<const char*>(copy() + sources_[i]),
                                 static_cast<size_t>(pieces_[i].strip.count) * sizeof(float));
    result.checksums.push_back(checksum(bytes));
    file.write(bytes.data(), bytes.size());
    file.begin_sync();  // while the next piece's checksum is taken
  }
  if (!end.stop_requested()) file.commit();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

void CheckpointWriter::drain(const std::string& path) {
  require(!draining(), "a part of a checkpoint is still being written");
  const std::string name = std::filesystem::path(path).filename();
  for (CheckpointPiece& piece : pieces_) piece.part = name;
  std::promise<Drained> promise;
  drain_ = promise.get_future();
  thread_ = start_thread("checkpoint",
                         [this, path, result = std::make_shared<std::promise<Drained>>(std::move(promise))](
                             const std::stop_token& end) {
                           try {
                             result->set_value(write(path, end));
                           } catch (...) {
                             result->set_exception(std::current_exception());
                           }
                         });
}

bool CheckpointWriter::drained(double seconds) {
  if (drain_.wait_for(std::chrono::duration<double>(seconds)) != std::future_status::ready) return false;
  thread_.join();
  const Drained result = drain_.get();
  for (size_t i = 0; i < pieces_.size(); ++i) pieces_[i].crc32 = result.checksums[i];
  seconds_ = result.seconds;
  return true;
}

void CheckpointWriter::give_up() {
  if (!draining()) return;
  thread_.request_stop();
  thread_.join();
  drain_ = {};
}

}  // namespace sl
