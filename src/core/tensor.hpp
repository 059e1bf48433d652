// Tensor: a typed view of memory that somebody else owns (a Buffer). Row-major; a matrix may have a row
// stride larger than its width, so that a column range of a packed product is a tensor too. A Tensor never
// frees; whoever takes one does not keep it past the call.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/bf16.hpp"
#include "core/error.hpp"

namespace sl {

enum class DType : uint8_t { f32, bf16, i32, u32 };

// cpu: host memory, host operations. debug: host pages that fault when host code touches them between
// operations; operations run on the CPU. cuda: device memory.
enum class Device : uint8_t { cpu, debug, cuda };

// Where tensors are, and of which dtype their numbers.
struct Placement {
  Placement(Device place_device, DType place_dtype = DType::f32) : device(place_device), dtype(place_dtype) {}
  Device device;
  DType dtype;
};

int64_t size_of(DType dtype);
std::string_view name_of(DType dtype);
std::string_view name_of(Device device);

template <typename T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<std::remove_const_t<T>, float>) {
    return DType::f32;
  } else if constexpr (std::is_same_v<std::remove_const_t<T>, Bf16>) {
    return DType::bf16;
  } else if constexpr (std::is_same_v<std::remove_const_t<T>, int32_t>) {
    return DType::i32;
  } else {
    static_assert(std::is_same_v<std::remove_const_t<T>, uint32_t>, "no DType for this element type");
    return DType::u32;
  }
}

class Tensor {
 public:
  static constexpr int max_rank = 4;

  Tensor() = default;
  // A dense view; `data` must stay valid while the view is used.
  Tensor(void* data, DType dtype, Device device, std::initializer_list<int64_t> shape);

  bool defined() const { return data_ != nullptr || rank_ > 0; }
  int rank() const { return rank_; }
  int64_t dim(int i) const;
  int64_t rows() const { return dim(0); }
  int64_t columns() const { return dim(1); }
  int64_t size() const;                                       // number of elements
  int64_t bytes() const { return size() * size_of(dtype_); }  // of the elements, without stride gaps
  int64_t row_stride() const { return row_stride_; }          // elements between successive dim-0 indices
  bool contiguous() const;
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  void* raw() const { return data_; }

  // The elements; throws BugError when T is not the dtype.
  template <typename T>
  T* data() const {
    require(dtype_ == dtype_of<T>(), "tensor read as another dtype than " + std::string(name_of(dtype_)));
    return static_cast<T*>(data_);
  }

  Tensor rows(int64_t begin, int64_t end) const;                // dim-0 range, same rank
  Tensor columns(int64_t begin, int64_t end) const;             // of a matrix; keeps the row stride
  Tensor at(int64_t index) const;                               // dim-0 element, rank - 1; dense tensors only
  Tensor reshaped(std::initializer_list<int64_t> shape) const;  // dense tensors only
  std::string describe() const;                                 // "f32[12, 576] on cpu"

 private:
  void* data_ = nullptr;
  std::array<int64_t, max_rank> shape_{};
  int64_t row_stride_ = 0;
  int rank_ = 0;
  DType dtype_ = DType::f32;
  Device device_ = Device::cpu;
};

}  // namespace sl
