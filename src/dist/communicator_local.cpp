#include <cstddef>
#include <vector>

#include "core/buffer.hpp"
#include "dist/communicator.hpp"

namespace sl {
namespace {

// Refuses what the communicators of several ranks refuse.
class LocalCommunicator : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  bool in_stream() const override { return true; }
  void all_reduce_sum(const Tensor& tensor) override { check(tensor); }
  void all_reduce_max(const Tensor& tensor) override { check(tensor); }
  void all_gather(const Tensor& part, const Tensor& out) override {
    require(part.contiguous() && out.contiguous() && part.dtype() == out.dtype() &&
                part.device() == out.device() && part.size() == out.size(),
            "all_gather of " + part.describe() + " from 1 rank into " + out.describe());
    if (part.raw() == out.raw()) return;
    std::vector<std::byte> bytes(static_cast<size_t>(part.bytes()));
    copy_to_host(bytes.data(), part, part.bytes());
    copy_to_device(out, bytes.data(), out.bytes());
  }
  void broadcast(std::span<std::byte>, int root) override {
    require(root == 0, "broadcast from a rank outside the group");
  }
  void all_reduce_sum(std::span<double>) override {}
  void all_reduce_max(std::span<int64_t>) override {}
  std::vector<std::string> all_gather(const std::string& part) override { return {part}; }
  void barrier() override {}

 private:
  static void check(const Tensor& tensor) {
    require(tensor.contiguous() && (tensor.dtype() == DType::f32 || tensor.dtype() == DType::bf16),
            "all_reduce of " + tensor.describe());
  }
};

}  // namespace

std::unique_ptr<Communicator> make_local_communicator() { return std::make_unique<LocalCommunicator>(); }

}  // namespace sl
