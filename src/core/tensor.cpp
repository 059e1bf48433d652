#include "core/tensor.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <span>

namespace sl {

int64_t size_of(DType dtype) { return dtype == DType::bf16 ? 2 : 4; }

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::i32:
      return "i32";
    case DType::u32:
      return "u32";
  }
  throw BugError("unknown dtype");
}

std::string_view name_of(Device device) {
  switch (device) {
    case Device::cpu:
      return "cpu";
    case Device::debug:
      return "debug";
    case Device::cuda:
      return "cuda";
  }
  throw BugError("unknown device");
}

Tensor::Tensor(void* data, DType dtype, Device device, std::initializer_list<int64_t> shape)
    : data_(data), rank_(static_cast<int>(shape.size())), dtype_(dtype), device_(device) {
  require(rank_ >= 1 && rank_ <= max_rank, "a tensor has 1 to 4 dimensions");
  std::copy(shape.begin(), shape.end(), shape_.begin());
  row_stride_ = 1;
  for (int i = 0; i < rank_; ++i) {
    require(shape_[i] >= 0, "negative tensor dimension");
    if (i > 0) row_stride_ *= shape_[i];
  }
}

int64_t Tensor::dim(int i) const {
  require(i >= 0 && i < rank_, "tensor has no such dimension");
  return shape_[i];
}

int64_t Tensor::size() const {
  if (rank_ == 0) return 0;
  int64_t n = 1;
  for (int i = 0; i < rank_; ++i) n *= shape_[i];
  return n;
}

bool Tensor::contiguous() const {
  int64_t dense = 1;
  for (int i = 1; i < rank_; ++i) dense *= shape_[i];
  return row_stride_ == dense || rank_ == 0 || shape_[0] <= 1;
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  require(rank_ >= 1 && 0 <= begin && begin <= end && end <= shape_[0], "row range outside " + describe());
  Tensor view = *this;
  view.shape_[0] = end - begin;
  view.data_ = static_cast<char*>(data_) + begin * row_stride_ * size_of(dtype_);
  return view;
}

Tensor Tensor::columns(int64_t begin, int64_t end) const {
  require(rank_ == 2 && 0 <= begin && begin <= end && end <= shape_[1], "column range outside " + describe());
  Tensor view = *this;
  view.shape_[1] = end - begin;
  view.data_ = static_cast<char*>(data_) + begin * size_of(dtype_);
  return view;
}

Tensor Tensor::at(int64_t index) const {
  require(rank_ >= 2 && contiguous() && 0 <= index && index < shape_[0], "index outside " + describe());
  Tensor view = *this;
  view.data_ = static_cast<char*>(data_) + index * row_stride_ * size_of(dtype_);
  view.rank_ = rank_ - 1;
  view.row_stride_ = 1;
  for (int i = 0; i < view.rank_; ++i) {
    view.shape_[i] = shape_[i + 1];
    if (i > 0) view.row_stride_ *= view.shape_[i];
  }
  return view;
}

Tensor Tensor::reshaped(std::initializer_list<int64_t> shape) const {
  require(contiguous(), "reshape of a strided tensor");
  Tensor view(data_, dtype_, device_, shape);
  require(view.size() == size(), "reshape changes the number of elements of " + describe());
  return view;
}

std::string Tensor::describe() const {
  return fmt::format("{}[{}] on {}", name_of(dtype_),
                     fmt::join(std::span(shape_.data(), static_cast<size_t>(rank_)), ", "), name_of(device_));
}

}  // namespace sl
