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
  void reduce_sum(const Tensor& tensor, int root) override {
    require(root == 0, "a sum for a rank outside the group");
    check(tensor);
  }
  void reduce_scatter_sum(const Tensor& whole, const Tensor& part) override {
    check(whole);
    copy("reduce_scatter", whole, part);
  }
  void all_gather(const Tensor& part, const Tensor& out) override { copy("all_gather", part, out); }
  void broadcast(std::span<std::byte>, int root) override {
    require(root == 0, "broadcast from a rank outside the group");
  }
  void all_reduce_sum(std::span<double>) override {}
  void all_reduce_max(std::span<int64_t>) override {}
  std::vector<std::string> all_gather(const std::string& part) override { return {part}; }
  void barrier() override {}

 private:
  static void copy(const char* call, const Tensor& from, const Tensor& to) {
    require(from.contiguous() && to.contiguous() && from.dtype() == to.dtype() &&
                from.device() == to.device() && from.size() == to.size(),
            std::string(call) + " of " + from.describe() + " among 1 rank into " + to.describe());
    if (from.raw() == to.raw()) return;
    std::vector<std::byte> bytes(static_cast<size_t>(from.bytes()));
    copy_to_host(bytes.data(), from, from.bytes());
    copy_to_device(to, bytes.data(), to.bytes());
  }
  static void check(const Tensor& tensor) {
    require(tensor.contiguous() && (tensor.dtype() == DType::f32 || tensor.dtype() == DType::bf16),
            "all_reduce of " + tensor.describe());
  }
};

}  // namespace

std::unique_ptr<Communicator> make_local_communicator() { return std::make_unique<LocalCommunicator>(); }

}  // namespace sl
