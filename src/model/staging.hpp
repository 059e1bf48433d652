// Small host arrays on their way to a device: placed one after the other, sent in one copy. While the device
// still reads one filling, the next is written elsewhere.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "kernels/device.hpp"

namespace sl {

class Staging {
 public:
  Staging() = default;
  Staging(const Context& context, int64_t bytes, const std::string& name);

  // Forgets what was placed. The tensors of the filling before are overwritten by the next send().
  void begin();
  // A tensor on the device that holds `values` after the next send(). The same sizes in the same order after
  // begin() give the same addresses. BugError when it is full.
  template <typename T>
  Tensor place(std::span<const T> values) {
    const Tensor tensor = take(dtype_of<T>(), static_cast<int64_t>(values.size()));
    if (!values.empty()) {
      std::memcpy(host() + (static_cast<std::byte*>(tensor.raw()) - static_cast<std::byte*>(buffer_.data())),
                  values.data(), values.size_bytes());
    }
    return tensor;
  }
  void send();

  static int64_t bytes_for(int64_t values) { return Arena::bytes_for(DType::i32, {values}); }

 private:
  static constexpr size_t fillings = 3;
  Tensor take(DType dtype, int64_t values);
  std::byte* host() const { return hosts_[current_].data(); }

  Context context_;
  Buffer buffer_;
  std::array<HostBuffer, fillings> hosts_;
  std::array<Mark, fillings> sent_;
  size_t current_ = 0;
  int64_t used_ = 0;
};

}  // namespace sl
