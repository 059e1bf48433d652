// Tests of operations run with the same body on every device: on host memory, on the debug device, which
// finds host/device mix-ups, and on a GPU, whose floats are stored as f32 or bf16. Their tensors lie between
// guard zones.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <concepts>
#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "kernels/device.hpp"
#include "kernels/ops.hpp"
#include "tests/support.hpp"

namespace sl::test {

struct Place {
  Device device = Device::cpu;
  DType storage = DType::f32;
};

inline std::string name_of(const Place& place) {
  const std::string device(name_of(place.device));
  return place.device == Device::cuda ? device + "_" + std::string(name_of(place.storage)) : device;
}
// What GoogleTest calls a parameter.
inline void PrintTo(const Place& place, std::ostream* out) { *out << name_of(place); }

// A process uses one GPU: the one it asks for first.
inline Context context_of(const Place& place, int gpu = 0) {
  Context context{.device = place.device, .storage = place.storage};
  if (place.device == Device::cuda) {
    // Never closed: at the end of the process the driver may be gone first.
    static const auto* const opened = new std::shared_ptr<CudaState>(open_gpu(gpu, ""));
    context.cuda = opened->get();
  }
  return context;
}

// A tensor on a device that lies in the middle of NaN: whoever reads outside it gets NaN, whoever writes
// outside it is found by surroundings_untouched(); inside are NaN too until something is written. A matrix
// may have a gap of more NaN between its rows; then the first row does not begin at a round address either.
class GuardedTensor {
 public:
  const Tensor& tensor() const { return tensor_; }
  operator const Tensor&() const { return tensor_; }

  bool surroundings_untouched() const {
    std::vector<uint32_t> words(static_cast<size_t>(buffer_.bytes() / 4));
    copy_to_host(words.data(), whole(), buffer_.bytes());
    const auto* const bytes = reinterpret_cast<const unsigned char*>(words.data());
    const auto* const pattern = reinterpret_cast<const unsigned char*>(&nan_pattern);
    const auto untouched = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (bytes[i] != pattern[i % 4]) return false;
      }
      return true;
    };
    const int64_t size = size_of(tensor_.dtype()), rows = tensor_.rows();
    const int64_t stride = tensor_.row_stride() * size;
    const int64_t width = tensor_.size() / std::max<int64_t>(rows, 1) * size;
    int64_t outside = 0;
    int64_t row_begin = static_cast<const char*>(tensor_.raw()) - static_cast<const char*>(buffer_.data());
    for (int64_t row = 0; row < rows; ++row) {
      if (!untouched(outside, row_begin)) return false;
      outside = row_begin + width;
      row_begin += stride;
    }
    return untouched(outside, buffer_.bytes());
  }

 protected:
  GuardedTensor(Device device, DType dtype, std::initializer_list<int64_t> shape, int64_t gap)
      : buffer_(device, bytes_of(dtype, shape, gap), "guarded test tensor") {
    const std::vector<uint32_t> pattern(static_cast<size_t>(buffer_.bytes() / 4), nan_pattern);
    copy_to_device(whole(), pattern.data(), buffer_.bytes());
    void* const first = static_cast<char*>(buffer_.data()) + guard_bytes;
    tensor_ = Tensor(first, dtype, device, shape);
    if (gap > 0) {
      const int64_t rows = tensor_.rows(), columns = tensor_.columns(), before = (gap + 1) / 2;
      tensor_ = Tensor(first, dtype, device, {rows, columns + gap}).columns(before, before + columns);
    }
  }

 private:
  static constexpr int64_t guard_bytes = 256;
  static constexpr uint32_t nan_pattern = 0x7FC17FC1;  // NaN as a float, and as two bf16

  static int64_t bytes_of(DType dtype, std::initializer_list<int64_t> shape, int64_t gap) {
    int64_t width = 1;
    for (const int64_t* dim = shape.begin() + 1; dim < shape.end(); ++dim) width *= *dim;
    return (*shape.begin() * (width + gap) * size_of(dtype) + 3) / 4 * 4 + 2 * guard_bytes;
  }
  Tensor whole() const { return {buffer_.data(), DType::u32, buffer_.device(), {buffer_.bytes() / 4}}; }

  Buffer buffer_;
  Tensor tensor_;
};

// One whose elements are T whatever the storage dtype.
template <typename T>
class Guarded : public GuardedTensor {
 public:
  Guarded(Device device, std::initializer_list<int64_t> shape) : Guarded(device, shape, 0) {}
  // A template, so that one value in braces is not taken for a gap.
  template <std::integral Gap>
  Guarded(Device device, std::initializer_list<int64_t> shape, Gap gap)
      : GuardedTensor(device, dtype_of<T>(), shape, gap) {}
  Guarded(Device device, std::initializer_list<int64_t> shape, const std::vector<T>& values, int64_t gap = 0)
      : Guarded(device, shape, gap) {
    write(values);
  }

  void write(const std::vector<T>& values) {
    ASSERT_EQ(static_cast<int64_t>(values.size()), tensor().size());
    upload<T>(tensor(), values);
  }
  std::vector<T> read() const { return download<T>(tensor()); }
};

// One whose elements are of the storage dtype of its place; floats go in, rounded to it, and come out.
class Stored : public GuardedTensor {
 public:
  Stored(const Place& place, std::initializer_list<int64_t> shape) : Stored(place, shape, 0) {}
  template <std::integral Gap>
  Stored(const Place& place, std::initializer_list<int64_t> shape, Gap gap)
      : GuardedTensor(place.device, place.storage, shape, gap) {}
  Stored(const Place& place, std::initializer_list<int64_t> shape, const std::vector<float>& values,
         int64_t gap = 0)
      : Stored(place, shape, gap) {
    write(values);
  }

  void write(const std::vector<float>& values) {
    ASSERT_EQ(static_cast<int64_t>(values.size()), tensor().size());
    upload_floats(tensor(), values);
  }
  std::vector<float> read() const { return download_floats(tensor()); }
};

class OnDevices : public ::testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    if (device() == Device::cuda && gpu_count() == 0) GTEST_SKIP() << "no GPU here";
  }
  const Place& place() const { return GetParam(); }
  Device device() const { return place().device; }
  DType storage() const { return place().storage; }
  // Operations read index tensors on the host there: wrong values in them are found.
  bool on_host() const { return device() != Device::cuda; }
  Context context() const { return context_of(place()); }
  Context deterministic() const {
    Context here = context();
    here.deterministic = true;
    return here;
  }

  // The values that a Stored holds after they were written to it: what a reference must begin from.
  std::vector<float> stored(std::vector<float> values) const {
    if (storage() == DType::bf16) {
      for (float& value : values) value = static_cast<float>(Bf16(value));
    }
    return values;
  }
  std::vector<float> floats(int64_t n, uint32_t seed, float scale = 1.0F) const {
    return stored(random_floats(n, seed, scale));
  }
};

inline std::vector<Place> places() {
  std::vector<Place> all = {{Device::cpu, DType::f32}, {Device::debug, DType::f32}};
#if SELFLENGTHEN_CUDA
  all.push_back({Device::cuda, DType::f32});
  all.push_back({Device::cuda, DType::bf16});
#endif
  return all;
}

#define SL_ON_DEVICES(Suite)                                              \
  INSTANTIATE_TEST_SUITE_P(Devices, Suite, ::testing::ValuesIn(places()), \
                           [](const auto& tested) { return name_of(tested.param); })

}  // namespace sl::test
