#include "core/buffer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/ops.hpp"

namespace sl::test {
namespace {

int64_t bytes_named(const std::string& name) {
  int64_t bytes = 0;
  for (const MemoryEntry& entry : memory_table()) bytes += entry.name == name ? entry.bytes : 0;
  return bytes;
}

TEST(BufferTest, IsZeroedAlignedAndListedWhileItLives) {
  {
    const Buffer one(Device::cpu, 1000, "test weights"), two(Device::cpu, 24, "test weights");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(one.data()) % 64, 0U);
    const char* bytes = static_cast<const char*>(one.data());
    EXPECT_TRUE(std::all_of(bytes, bytes + 1000, [](char c) { return c == 0; }));
    EXPECT_EQ(bytes_named("test weights"), one.bytes() + two.bytes());
    EXPECT_GE(one.bytes(), 1000);
  }
  EXPECT_EQ(bytes_named("test weights"), 0);
}

TEST(BufferTest, MovingPassesTheMemoryOn) {
  Buffer first(Device::cpu, 128, "test moved");
  void* data = first.data();
  Buffer second(std::move(first));
  EXPECT_EQ(second.data(), data);
  Buffer third;
  third = std::move(second);
  EXPECT_EQ(third.data(), data);
  EXPECT_EQ(third.name(), "test moved");
  EXPECT_EQ(bytes_named("test moved"), 128);
}

TEST(BufferTest, NamesWhatDoesNotFit) {
  try {
    const Buffer huge(Device::cpu, int64_t{1} << 60, "test of a vast cache");
    FAIL() << "allocated";
  } catch (const SystemError& error) {
    EXPECT_NE(std::string(error.what()).find("test of a vast cache"), std::string::npos) << error.what();
  }
  EXPECT_THROW(Buffer(Device::cpu, -1, "test of a negative size"), BugError);
}

TEST(BufferTest, TheTableIsSortedBySize) {
  const Buffer small(Device::cpu, 4096, "test small"), large(Device::debug, 1 << 20, "test large");
  const auto table = memory_table();
  EXPECT_TRUE(std::is_sorted(table.begin(), table.end(), [](auto& a, auto& b) { return a.bytes > b.bytes; }));
}

TEST(ArenaTest, HandsOutAlignedTensorsAndTakesThemBack) {
  Arena arena(Device::cpu, 1024, "test arena");
  const Tensor first = arena.take(DType::f32, {3, 5});
  const int64_t mark = arena.mark();
  EXPECT_EQ(mark, Arena::bytes_for(DType::f32, {3, 5}));
  EXPECT_EQ(mark, 64);
  const Tensor second = arena.take(DType::u32, {16});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(second.raw()) % 64, 0U);
  EXPECT_GE(static_cast<char*>(second.raw()), static_cast<char*>(first.raw()) + first.bytes());
  arena.release(mark);
  EXPECT_EQ(arena.take(DType::i32, {2}).raw(), second.raw());
  EXPECT_EQ(arena.device(), Device::cpu);
  try {
    (void)arena.take(DType::f32, {300});
    FAIL() << "more than there is";
  } catch (const BugError& error) {
    EXPECT_NE(std::string(error.what()).find("arena 'test arena'"), std::string::npos) << error.what();
  }
}

class DevicesTest : public ::testing::TestWithParam<Device> {};
INSTANTIATE_TEST_SUITE_P(Devices, DevicesTest, ::testing::Values(Device::cpu, Device::debug),
                         [](const auto& device) { return std::string(name_of(device.param)); });

TEST_P(DevicesTest, CopiesGoThereAndBack) {
  const Buffer buffer(GetParam(), 400, "test copies");
  const Tensor x(buffer.data(), DType::i32, GetParam(), {4, 25});
  std::vector<int32_t> values(100);
  std::iota(values.begin(), values.end(), -50);
  upload<int32_t>(x, values);
  EXPECT_EQ(download<int32_t>(x), values);
  EXPECT_EQ(download<int32_t>(x.rows(1, 3)), std::vector<int32_t>(values.begin() + 25, values.begin() + 75));
  EXPECT_THROW(upload<int32_t>(x.rows(0, 3), values), BugError);
  // A column range: what lies beside it stays.
  const std::vector<int32_t> twelve(values.begin(), values.begin() + 12);
  upload<int32_t>(x.columns(2, 5), twelve);
  EXPECT_EQ(download<int32_t>(x.columns(2, 5)), twelve);
  for (size_t i = 0; i < twelve.size(); ++i) values[i / 3 * 25 + 2 + i % 3] = twelve[i];
  EXPECT_EQ(download<int32_t>(x), values);
  EXPECT_THROW(upload<int32_t>(x.columns(0, 4), twelve), BugError);
  EXPECT_THROW((void)download<float>(x), BugError);
}

TEST(DebugDeviceDeathTest, HostCodeDiesOnDeviceMemory) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Buffer buffer(Device::debug, 4096, "test debug");
  volatile float* values = static_cast<float*>(buffer.data());
  EXPECT_DEATH(values[0] = 1.0F, "");
  EXPECT_DEATH(std::exit(static_cast<int>(values[0])), "");
  {
    const DeviceTurn turn(Device::debug);
    {
      const DeviceTurn nested(Device::debug);
      values[0] = 2.0F;
    }
    EXPECT_EQ(values[0], 2.0F) << "the outer turn goes on";
  }
  EXPECT_DEATH(values[0] = 1.0F, "");
}

TEST(DebugDeviceDeathTest, OperationsMayTouchItAndProtectItAgain) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Buffer buffer(Device::debug, 4096, "test debug");
  const Tensor x(buffer.data(), DType::f32, Device::debug, {10});
  run(Context{.device = Device::debug}, Fill{.out = x, .value = 3.0F});
  EXPECT_EQ(download<float>(x), std::vector<float>(10, 3.0F));
  volatile float* values = static_cast<float*>(buffer.data());
  EXPECT_DEATH(values[0] = 1.0F, "");
  // A failed operation must not leave it open.
  EXPECT_THROW(run(Context{.device = Device::debug}, Fill{.out = Tensor()}), BugError);
  EXPECT_DEATH(values[0] = 1.0F, "");
}

}  // namespace
}  // namespace sl::test
