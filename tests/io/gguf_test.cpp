// GGUF files: every block format against recorded values, parts of tensors, metadata of every type, and
// headers that lie.
#include "io/gguf.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "core/error.hpp"
#include "io/safetensors.hpp"
#include "scratch.hpp"

namespace sl {
namespace {

using test::message_of;
using test::ScratchFolder;
using testing::AllOf;
using testing::HasSubstr;

const std::string types_folder = SELFLENGTHEN_SOURCE_DIR "/tests/reference/gguf/types/";

int64_t columns_of(const WeightInfo& info) { return info.shape.back(); }
int64_t rows_of(const WeightInfo& info) { return info.shape.size() == 1 ? 1 : info.shape.front(); }

std::vector<float> read_block(const WeightFile& file, const std::string& name, const Block& block) {
  std::vector<float> values(
      static_cast<size_t>((block.row_end - block.row_begin) * (block.column_end - block.column_begin)));
  file.read(name, block, values.data());
  return values;
}

std::vector<float> read_whole(const WeightFile& file, const std::string& name) {
  const WeightInfo* info = file.find(name);
  if (info == nullptr) throw std::runtime_error("no tensor " + name);
  return read_block(file, name, {0, rows_of(*info), 0, columns_of(*info)});
}

// Builds a file's bytes field by field.
class Bytes {
 public:
  template <typename T>
  Bytes& put(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  Bytes& text(const std::string& value) {
    put<uint64_t>(value.size());
    text_ += value;
    return *this;
  }
  Bytes& begin(uint64_t tensors, uint64_t entries, uint32_t version = 3) {
    text_ += "GGUF";
    return put(version).put(tensors).put(entries);
  }
  Bytes& tensor(const std::string& name, const std::vector<uint64_t>& innermost_first, uint32_t type,
                uint64_t offset) {
    text(name).put(static_cast<uint32_t>(innermost_first.size()));
    for (uint64_t dim : innermost_first) put(dim);
    return put(type).put(offset);
  }
  // Up to a multiple of `alignment`, then `bytes` zeros.
  Bytes& data(size_t bytes, size_t alignment = 32) {
    text_.resize((text_.size() + alignment - 1) / alignment * alignment + bytes);
    return *this;
  }
  const std::string& str() const { return text_; }

 private:
  std::string text_;
};

class GgufTypes : public testing::TestWithParam<std::string> {};

TEST_P(GgufTypes, DequantizesAsRecorded) {
  const GgufFile file(types_folder + GetParam() + ".gguf");
  const auto expected = open_safetensors(types_folder + GetParam() + ".safetensors");
  ASSERT_EQ(file.tensors().size(), 3U);
  for (const WeightInfo& info : file.tensors()) {
    SCOPED_TRACE(info.name);
    const WeightInfo* other = expected->find(info.name);
    ASSERT_NE(other, nullptr);
    EXPECT_EQ(info.shape, other->shape);
    EXPECT_EQ(info.storage, GetParam());
    // Each value is one or two roundings of exact products: the last bit may differ, no more.
    const auto mine = read_whole(file, info.name), theirs = read_whole(*expected, info.name);
    for (size_t i = 0; i < mine.size(); ++i) ASSERT_FLOAT_EQ(mine[i], theirs[i]) << "element " << i;
  }
}

TEST_P(GgufTypes, APartIsThatPartOfTheWhole) {
  const GgufFile file(types_folder + GetParam() + ".gguf");
  std::mt19937 random(7);
  for (const WeightInfo& info : file.tensors()) {
    const auto whole = read_whole(file, info.name);
    const int64_t rows = rows_of(info), columns = columns_of(info);
    for (int round = 0; round < 50; ++round) {
      const auto range = [&](int64_t size) {
        int64_t a = std::uniform_int_distribution<int64_t>(0, size)(random);
        int64_t b = std::uniform_int_distribution<int64_t>(0, size)(random);
        return std::minmax({a, b});
      };
      const auto [row_begin, row_end] = range(rows);
      auto [column_begin, column_end] = range(columns);
      if (round % 2 == 0) {  // as tensor-parallel ranks cut: a half of the columns
        column_begin = round % 4 == 0 ? 0 : columns / 2;
        column_end = column_begin + columns / 2;
      }
      std::vector<float> expected;
      for (int64_t row = row_begin; row < row_end; ++row)
        expected.insert(expected.end(), whole.begin() + row * columns + column_begin,
                        whole.begin() + row * columns + column_end);
      EXPECT_EQ(read_block(file, info.name, {row_begin, row_end, column_begin, column_end}), expected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GgufTypes,
                         testing::Values("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K",
                                         "Q5_K", "Q6_K"),
                         [](const auto& type) { return type.param; });

class GgufHeader : public testing::Test {
 protected:
  std::string save(const Bytes& bytes) {
    test::write_bytes(folder_ / "model.gguf", bytes.str());
    return folder_ / "model.gguf";
  }
  // The file is refused with a message that names it.
  std::string refusal(const Bytes& bytes) {
    const std::string path = save(bytes);
    const std::string message = message_of<InputError>([&] { GgufFile file(path); });
    EXPECT_THAT(message, HasSubstr(path));
    return message;
  }
  ScratchFolder folder_;
};

TEST_F(GgufHeader, MetadataOfEveryTypeIsRead) {
  Bytes bytes;
  bytes.begin(0, 17);
  bytes.text("u8").put<uint32_t>(0).put<uint8_t>(200);
  bytes.text("i8").put<uint32_t>(1).put<int8_t>(-5);
  bytes.text("u16").put<uint32_t>(2).put<uint16_t>(60000);
  bytes.text("i16").put<uint32_t>(3).put<int16_t>(-30000);
  bytes.text("u32").put<uint32_t>(4).put<uint32_t>(4000000000U);
  bytes.text("i32").put<uint32_t>(5).put<int32_t>(-2000000000);
  bytes.text("f32").put<uint32_t>(6).put<float>(0.25F);
  bytes.text("bool").put<uint32_t>(7).put<uint8_t>(1);
  bytes.text("string").put<uint32_t>(8).text("长 text");
  bytes.text("u64").put<uint32_t>(10).put<uint64_t>(uint64_t{1} << 62);
  bytes.text("i64").put<uint32_t>(11).put<int64_t>(-(int64_t{1} << 62));
  bytes.text("f64").put<uint32_t>(12).put<double>(-1e300);
  bytes.text("strings").put<uint32_t>(9).put<uint32_t>(8).put<uint64_t>(2).text("a").text("");
  bytes.text("i32s").put<uint32_t>(9).put<uint32_t>(5).put<uint64_t>(3).put<int32_t>(1).put<int32_t>(-2);
  bytes.put<int32_t>(3);
  bytes.text("f32s").put<uint32_t>(9).put<uint32_t>(6).put<uint64_t>(2).put<float>(1.5F).put<float>(-2.F);
  bytes.text("bools").put<uint32_t>(9).put<uint32_t>(7).put<uint64_t>(2).put<uint8_t>(0).put<uint8_t>(1);
  bytes.text("empty").put<uint32_t>(9).put<uint32_t>(5).put<uint64_t>(0);
  const GgufFile file(save(bytes));
  EXPECT_EQ(file.find_integer("u8"), 200);
  EXPECT_EQ(file.find_integer("i8"), -5);
  EXPECT_EQ(file.find_integer("u16"), 60000);
  EXPECT_EQ(file.find_integer("i16"), -30000);
  EXPECT_EQ(file.find_integer("u32"), 4000000000);
  EXPECT_EQ(file.find_integer("i32"), -2000000000);
  EXPECT_EQ(file.find_float("f32"), 0.25);
  EXPECT_EQ(file.find_bool("bool"), true);
  EXPECT_EQ(file.find_string("string"), "长 text");
  EXPECT_EQ(file.find_integer("u64"), int64_t{1} << 62);
  EXPECT_EQ(file.find_integer("i64"), -(int64_t{1} << 62));
  EXPECT_EQ(file.find_float("f64"), -1e300);
  EXPECT_EQ(file.find_float("u8"), 200.0);
  EXPECT_EQ(file.find_strings("strings"), (std::vector<std::string>{"a", ""}));
  EXPECT_EQ(file.find_integers("i32s"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(file.find_floats("f32s"), (std::vector<double>{1.5, -2.0}));
  EXPECT_EQ(file.find_integers("bools"), (std::vector<int64_t>{0, 1}));
  EXPECT_TRUE(file.find_integers("empty").empty());
  EXPECT_EQ(file.find_string("absent"), std::nullopt);
  EXPECT_THAT(message_of<InputError>([&] { file.find_integer("string"); }),
              AllOf(HasSubstr("'string'"), HasSubstr("integer")));
  EXPECT_THAT(message_of<InputError>([&] { file.find_strings("i32s"); }), HasSubstr("'i32s'"));
}

TEST_F(GgufHeader, ShapesAreTurnedAndOffsetsAligned) {
  for (uint32_t version : {2U, 3U}) {
    Bytes bytes;
    bytes.begin(2, 1, version).text("general.alignment").put<uint32_t>(4).put<uint32_t>(64);
    bytes.tensor("first", {1}, 0, 0).tensor("second", {3, 2}, 0, 64).data(0, 64);
    bytes.put(7.5F).data(0, 64);
    for (float value : {1.F, 2.F, 3.F, 4.F, 5.F, 6.F}) bytes.put(value);
    const GgufFile file(save(bytes));
    EXPECT_EQ(file.find("second")->shape, (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(read_whole(file, "first"), (std::vector<float>{7.5F}));
    EXPECT_EQ(read_block(file, "second", {0, 2, 1, 3}), (std::vector<float>{2, 3, 5, 6}));
    EXPECT_EQ(file.find("third"), nullptr);
    EXPECT_THROW(read_block(file, "second", {0, 3, 0, 3}), BugError);
    EXPECT_THROW(read_block(file, "second", {0, 2, -1, 2}), BugError);
    float unused = 0;
    EXPECT_THROW(file.read("second", {1, 0, 0, 1}, &unused), BugError);
    EXPECT_THROW(file.read("second", {0, 1, 2, 1}, &unused), BugError);
    EXPECT_THROW(file.read("third", {0, 1, 0, 1}, &unused), BugError);
  }
}

TEST_F(GgufHeader, LiesAreRefused) {
  constexpr uint64_t huge = ~uint64_t{0};
  EXPECT_THAT(refusal(Bytes().begin(0, 0, 1)), HasSubstr("version 1"));
  EXPECT_THAT(refusal(Bytes().begin(0, 0, __builtin_bswap32(3))), HasSubstr("big-endian"));
  EXPECT_THAT(refusal(Bytes().begin(huge, 0)), HasSubstr("tensors"));
  EXPECT_THAT(refusal(Bytes().begin(0, huge)), HasSubstr("metadata entries"));
  EXPECT_THAT(refusal(Bytes().begin(0, 1).put(huge).data(64)), HasSubstr("past the file's end"));
  EXPECT_THAT(refusal(Bytes().begin(0, 1).text("key").put<uint32_t>(8).put(huge)), HasSubstr("key"));
  EXPECT_THAT(refusal(Bytes().begin(0, 1).text("key").put<uint32_t>(13).put(huge)),
              AllOf(HasSubstr("'key'"), HasSubstr("type 13")));
  EXPECT_THAT(refusal(Bytes().begin(0, 1).text("key").put<uint32_t>(9).put<uint32_t>(0).put(huge)),
              HasSubstr("'key'"));
  EXPECT_THAT(
      refusal(Bytes().begin(0, 1).text("key").put<uint32_t>(9).put<uint32_t>(77).put<uint64_t>(1).data(8)),
      AllOf(HasSubstr("'key'"), HasSubstr("type 77")));
  EXPECT_THAT(refusal(Bytes().begin(0, 1).text("key").put<uint32_t>(10).put(huge)), HasSubstr("'key'"));
  EXPECT_THAT(refusal(Bytes()
                          .begin(0, 2)
                          .text("key")
                          .put<uint32_t>(0)
                          .put<uint8_t>(1)
                          .text("key")
                          .put<uint32_t>(0)
                          .put<uint8_t>(2)),
              AllOf(HasSubstr("'key'"), HasSubstr("twice")));
  EXPECT_THAT(refusal(Bytes().begin(0, 1).text("general.alignment").put<uint32_t>(4).put<uint32_t>(0)),
              HasSubstr("alignment"));
  EXPECT_THAT(refusal(Bytes().begin(0, 1).text("general.alignment").put<uint32_t>(8).text("x")),
              HasSubstr("general.alignment"));
}

TEST_F(GgufHeader, LyingTensorsAreRefusedByName) {
  const auto one = [&](const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
    const std::string message = refusal(Bytes().begin(1, 0).tensor("blk.0.w", dims, type, offset).data(128));
    EXPECT_THAT(message, HasSubstr("'blk.0.w'"));
    return message;
  };
  constexpr uint64_t huge = ~uint64_t{0};
  EXPECT_THAT(one({33}, 0, 0), HasSubstr("past the file's end"));
  EXPECT_THAT(one({32}, 0, 32), HasSubstr("past the file's end"));
  EXPECT_THAT(one({1}, 0, huge), HasSubstr("past the file's end"));
  EXPECT_THAT(one({1}, 0, huge - 64), HasSubstr("past the file's end"));
  EXPECT_THAT(one({uint64_t{1} << 62}, 0, 0), HasSubstr("past the file's end"));
  EXPECT_THAT(one({huge}, 0, 0), HasSubstr("shape"));
  EXPECT_THAT(one({uint64_t{1} << 40, uint64_t{1} << 40}, 0, 0), HasSubstr("shape"));
  EXPECT_THAT(one({0, uint64_t{1} << 62, uint64_t{1} << 62}, 0, 0), HasSubstr("shape"));
  EXPECT_THAT(one({}, 0, 0), HasSubstr("0 dimensions"));
  EXPECT_THAT(one({1, 1, 1, 1, 1}, 0, 0), HasSubstr("5 dimensions"));
  EXPECT_THAT(one({33}, 3, 0), HasSubstr("multiple of 32"));
  EXPECT_THAT(one({32, 8}, 12, 0), HasSubstr("multiple of 256"));
  EXPECT_THAT(one({256}, 10, 0), HasSubstr("Q2_K"));
  EXPECT_THAT(one({256}, 99, 0), HasSubstr("99"));
  EXPECT_THAT(refusal(Bytes().begin(2, 0).tensor("w", {1}, 0, 0).tensor("w", {1}, 0, 32).data(64)),
              AllOf(HasSubstr("'w'"), HasSubstr("twice")));
}

TEST_F(GgufHeader, AFileCutAnywhereIsRefused) {
  const std::string whole = test::read_bytes(types_folder + "Q4_1.gguf");
  std::vector<size_t> cuts = {0, 1, 3, 4, 8, 23, 24, whole.size() - 1};
  for (size_t cut = 5; cut < whole.size(); cut += 97) cuts.push_back(cut);
  for (size_t cut : cuts) {
    test::write_bytes(folder_ / "cut.gguf", whole.substr(0, cut));
    EXPECT_THAT(message_of<InputError>([&] { GgufFile file(folder_ / "cut.gguf"); }), HasSubstr("cut.gguf"))
        << "cut at " << cut;
  }
}

// Whatever one byte of the header says, the file is read or refused: nothing is touched outside of it.
TEST_F(GgufHeader, NoByteOfTheHeaderIsBelievedBlindly) {
  const std::string whole = test::read_bytes(types_folder + "Q4_1.gguf");
  const size_t header = whole.size() - (6 * 512 + 3 * 256 + 256) / 32 * 20;
  int refused = 0;
  for (size_t at = 0; at < header; ++at) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ (at % 2 == 0 ? 0xFF : 0x10));
    test::write_bytes(folder_ / "changed.gguf", changed);
    try {
      const GgufFile file(folder_ / "changed.gguf");
      for (const WeightInfo& info : file.tensors()) {
        int64_t rows = 1;
        for (size_t i = 0; i + 1 < info.shape.size(); ++i) rows *= info.shape[i];
        read_block(file, info.name, {0, rows, 0, info.shape.back()});
      }
    } catch (const InputError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, static_cast<int>(header) / 4);
}

TEST(GgufFileOpen, MissingFolderAndForeignFilesAreNamed) {
  const ScratchFolder folder;
  EXPECT_THAT(message_of<InputError>([&] { GgufFile file(folder / "absent.gguf"); }),
              HasSubstr("absent.gguf"));
  EXPECT_THAT(message_of<InputError>([&] { GgufFile file(folder.path()); }), HasSubstr(folder.path()));
  test::write_bytes(folder / "text.gguf", "this is no model");
  EXPECT_THAT(message_of<InputError>([&] { GgufFile file(folder / "text.gguf"); }), HasSubstr("not a GGUF"));
}

}  // namespace
}  // namespace sl
