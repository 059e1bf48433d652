#include "model/staging.hpp"

namespace sl {

Staging::Staging(const Context& context, int64_t bytes, const std::string& name)
    : context_(context), buffer_(context.device, bytes, name) {
  for (HostBuffer& host : hosts_) host = HostBuffer(context.device, buffer_.bytes(), name);
}

void Staging::begin() {
  current_ = (current_ + 1) % fillings;
  sent_[current_].wait();
  used_ = 0;
}

Tensor Staging::take(DType dtype, int64_t values) {
  const int64_t bytes = bytes_for(values);
  require(used_ + bytes <= buffer_.bytes(), "staging '" + buffer_.name() + "' is full");
  Tensor tensor(static_cast<std::byte*>(buffer_.data()) + used_, dtype, buffer_.device(), {values});
  used_ += bytes;
  return tensor;
}

void Staging::send() {
  if (used_ == 0) return;
  send_to_device(context_,
                 Tensor(buffer_.data(), DType::i32, buffer_.device(), {used_ / size_of(DType::i32)}), host());
  sent_[current_].set(context_);
}

}  // namespace sl
