#include "core/tensor.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

namespace sl::test {
namespace {

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const BugError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

class TensorTest : public ::testing::Test {
 protected:
  TensorTest() : values_(24) {
    for (size_t i = 0; i < values_.size(); ++i) values_[i] = static_cast<float>(i);
  }
  std::vector<float> values_;
};

TEST_F(TensorTest, ADenseViewKnowsItsShape) {
  const Tensor x(values_.data(), DType::f32, Device::cpu, {2, 3, 4});
  EXPECT_EQ(x.rank(), 3);
  EXPECT_EQ(x.dim(2), 4);
  EXPECT_EQ(x.size(), 24);
  EXPECT_EQ(x.bytes(), 96);
  EXPECT_EQ(x.row_stride(), 12);
  EXPECT_TRUE(x.contiguous());
  EXPECT_EQ(x.describe(), "f32[2, 3, 4] on cpu");
  EXPECT_EQ(x.data<float>()[5], 5.0F);
  EXPECT_FALSE(Tensor().defined());
  EXPECT_EQ(Tensor().size(), 0);
  const Tensor empty(nullptr, DType::i32, Device::debug, {0, 7});
  EXPECT_TRUE(empty.defined());
  EXPECT_EQ(empty.bytes(), 0);
}

TEST_F(TensorTest, ViewsShareTheMemory) {
  const Tensor x(values_.data(), DType::f32, Device::cpu, {6, 4});
  const Tensor rows = x.rows(2, 5);
  EXPECT_EQ(rows.rows(), 3);
  EXPECT_EQ(rows.data<float>()[0], 8.0F);
  EXPECT_TRUE(rows.contiguous());
  const Tensor columns = rows.columns(1, 3);
  EXPECT_EQ(columns.columns(), 2);
  EXPECT_EQ(columns.row_stride(), 4);
  EXPECT_EQ(columns.data<float>()[columns.row_stride()], 13.0F);
  EXPECT_FALSE(columns.contiguous());
  EXPECT_TRUE(columns.rows(0, 1).contiguous()) << "one row has no gaps";
  const Tensor cube = x.reshaped({2, 3, 4});
  EXPECT_EQ(cube.at(1).describe(), "f32[3, 4] on cpu");
  EXPECT_EQ(cube.at(1).data<float>()[0], 12.0F);
  EXPECT_EQ(x.rows(6, 6).size(), 0);
}

TEST_F(TensorTest, RefusesWhatDoesNotFitAndSaysWhat) {
  const Tensor x(values_.data(), DType::f32, Device::cpu, {6, 4});
  EXPECT_NE(message_of([&] { (void)x.rows(5, 7); }).find("f32[6, 4] on cpu"), std::string::npos);
  EXPECT_NE(message_of([&] { (void)x.columns(-1, 2); }).find("column range"), std::string::npos);
  EXPECT_NE(message_of([&] { (void)x.reshaped({5, 5}); }).find("number of elements"), std::string::npos);
  EXPECT_NE(message_of([&] { (void)x.data<int32_t>(); }).find("f32"), std::string::npos);
  EXPECT_THROW((void)x.dim(2), BugError);
  EXPECT_THROW((void)x.at(6), BugError);
  EXPECT_THROW((void)x.columns(0, 2).reshaped({12}), BugError);
  EXPECT_THROW((void)x.columns(0, 2).at(0), BugError);
  EXPECT_THROW(Tensor(values_.data(), DType::f32, Device::cpu, {-1, 4}), BugError);
  EXPECT_THROW(Tensor(values_.data(), DType::f32, Device::cpu, {1, 1, 1, 1, 1}), BugError);
}

}  // namespace
}  // namespace sl::test
