#include <cstddef>
#include <vector>

#include "core/buffer.hpp"
#include "dist/communicator.hpp"
#include "dist/operands.hpp"

namespace sl {
namespace {

// Refuses what the communicators of several ranks refuse.
class LocalCommunicator : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  bool in_stream() const override { return true; }
  void all_reduce_sum(const Tensor& tensor) override { require_numbers("all_reduce", tensor); }
  void all_reduce_max(const Tensor& tensor) override { require_numbers("all_reduce", tensor); }
  void reduce_sum(const Tensor& tensor, int root) override {
    require(root == 0, "a sum for a rank outside the group");
    require_numbers("reduce", tensor);
  }
  void reduce_scatter_sum(const Tensor& whole, const Tensor& part) override {
    require_numbers("reduce_scatter", whole);
    require_parts("reduce_scatter", whole, part, 1);
    copy(whole, part);
  }
  void all_gather(const Tensor& part, const Tensor& out) override {
    require_parts("all_gather", out, part, 1);
    copy(part, out);
  }
  void broadcast(std::span<std::byte>, int root) override {
    require(root == 0, "broadcast from a rank outside the group");
  }
  void all_reduce_sum(std::span<double>) override {}
  void all_reduce_max(std::span<int64_t>) override {}
  std::vector<std::string> all_gather(const std::string& part) override { return {part}; }
  void barrier() override {}

 private:
  static void copy(const Tensor& from, const Tensor& to) {
    if (from.raw() == to.raw()) return;
    std::vector<std::byte> bytes(static_cast<size_t>(from.bytes()));
    copy_to_host(bytes.data(), from, from.bytes());
    copy_to_device(to, bytes.data(), to.bytes());
  }
};

}  // namespace

std::unique_ptr<Communicator> make_local_communicator() { return std::make_unique<LocalCommunicator>(); }

}  // namespace sl
