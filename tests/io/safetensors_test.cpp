// safetensors: what is written is read, files of others are read, shards are put together, and headers that
// lie are refused by name.
#include "io/safetensors.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "io/half.hpp"
#include "scratch.hpp"

namespace sl {
namespace {

using nlohmann::json;
using test::message_of;
using test::ScratchFolder;
using testing::AllOf;
using testing::HasSubstr;

const std::string models = SELFLENGTHEN_SOURCE_DIR "/tests/reference/models/";

std::vector<float> read_block(const WeightFile& file, const std::string& name, const Block& block) {
  std::vector<float> values(
      static_cast<size_t>((block.row_end - block.row_begin) * (block.column_end - block.column_begin)));
  file.read(name, block, values.data());
  return values;
}

// A file of the given header text and so many zero bytes of data.
std::string file_of(const std::string& header, size_t data) {
  const uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof(size));
  return bytes + header + std::string(data, '\0');
}

json entry(const std::string& dtype, const json& shape, const json& offsets) {
  return {{"dtype", dtype}, {"shape", shape}, {"data_offsets", offsets}};
}

class Safetensors : public testing::Test {
 protected:
  // The file is refused with a message that names it.
  std::string refusal(const std::string& bytes) {
    const std::string path = folder_ / "model.safetensors";
    test::write_bytes(path, bytes);
    const std::string message = message_of<InputError>([&] { open_safetensors(path); });
    EXPECT_THAT(message, HasSubstr(path));
    return message;
  }
  std::string refusal(const json& header, size_t data) { return refusal(file_of(header.dump(), data)); }

  ScratchFolder folder_;
};

TEST_F(Safetensors, WhatIsWrittenIsRead) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> exact = {0.F,      -0.F,   1.F,      -2.5F,
                                    0.09375F, 1024.F, infinity, -infinity};  // in 16 bits
  const std::vector<float> fine = {1.F / 3.F, -1e-30F, 3e38F, 5.F, 6.F, 7.F};
  write_safetensors(folder_ / "a.safetensors",
                    {{"fine", {2, 3}, "F32", fine.data()},
                     {"bf16", {2, 2, 2}, "BF16", exact.data()},
                     {"f16", {8}, "F16", exact.data()},
                     {"empty", {0, 4}, "F32", nullptr},
                     {"scalar", {}, "F32", fine.data()}},
                    {{"format", "pt"}, {"长", "\"quoted\""}});
  const auto file = open_safetensors(folder_ / "a.safetensors");
  EXPECT_EQ(file->tensors().size(), 5U);
  EXPECT_EQ(file->find("bf16")->shape, (std::vector<int64_t>{2, 2, 2}));
  EXPECT_EQ(file->find("f16")->storage, "F16");
  EXPECT_EQ(file->find("absent"), nullptr);
  EXPECT_EQ(read_block(*file, "fine", {0, 2, 0, 3}), fine);
  EXPECT_EQ(read_block(*file, "bf16", {0, 4, 0, 2}), exact);
  EXPECT_EQ(read_block(*file, "f16", {0, 1, 0, 8}), exact);
  EXPECT_EQ(read_block(*file, "scalar", {0, 1, 0, 1}), std::vector<float>{fine[0]});
  EXPECT_TRUE(read_block(*file, "empty", {0, 0, 0, 4}).empty());
  EXPECT_EQ(read_block(*file, "fine", {1, 2, 1, 3}), (std::vector<float>{6, 7}));
  EXPECT_EQ(read_block(*file, "f16", {0, 1, 3, 5}), (std::vector<float>{-2.5F, 0.09375F}));
  EXPECT_EQ(folder_.names(), std::set<std::string>{"a.safetensors"});
  // The data begins at a multiple of 8, and the metadata is in the header as it was given.
  const std::string bytes = test::read_bytes(folder_ / "a.safetensors");
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), sizeof(size));
  EXPECT_EQ(size % 8, 0U);
  EXPECT_EQ(json::parse(bytes.substr(8, size))["__metadata__"],
            (json{{"format", "pt"}, {"长", "\"quoted\""}}));
}

TEST_F(Safetensors, ReadingOutsideATensorIsABug) {
  const std::vector<float> values(6, 1.F);
  write_safetensors(folder_ / "a.safetensors", {{"w", {2, 3}, "F32", values.data()}}, {});
  const auto file = open_safetensors(folder_ / "a.safetensors");
  float unused[8];
  for (const Block& block : {Block{0, 3, 0, 3}, Block{0, 2, 0, 4}, Block{-1, 1, 0, 1}, Block{0, 1, -1, 1},
                             Block{2, 1, 0, 1}, Block{0, 1, 2, 1}}) {
    EXPECT_THROW(file->read("w", block, unused), BugError);
  }
  EXPECT_THROW(file->read("v", {0, 1, 0, 1}, unused), BugError);
}

TEST_F(Safetensors, RoundingTo16BitsIsToNearestEven) {
  struct Case {
    float value;
    uint16_t bf16, half;
  };
  const Case cases[] = {
      {1.F, 0x3F80, 0x3C00},
      {1.00390625F, 0x3F80, 0x3C04},     // 1 + 2^-8: a tie in bf16, to even below
      {1.01171875F, 0x3F82, 0x3C0C},     // 1 + 3 * 2^-8: a tie, to even above
      {1.00048828125F, 0x3F80, 0x3C00},  // 1 + 2^-11: a tie in half, to even below
      {65519.F, 0x4780, 0x7BFF},         // the last below half's overflow
      {65520.F, 0x4780, 0x7C00},         // infinity in half
      {3.4e38F, 0x7F80, 0x7C00},         // rounds up to infinity in bf16
      {5.9604645e-8F, 0x3380, 0x0001},   // half's smallest
      {-2.F, 0xC000, 0xC000},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(float_to_bf16(c.value), c.bf16) << c.value;
    EXPECT_EQ(float_to_half(c.value), c.half) << c.value;
  }
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(nan))));
  EXPECT_TRUE(std::isnan(half_to_float(float_to_half(nan))));
  // Every 16-bit number survives the way there and back.
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto b = static_cast<uint16_t>(bits);
    if (!std::isnan(bf16_to_float(b))) {
      ASSERT_EQ(float_to_bf16(bf16_to_float(b)), b);
    }
    if (!std::isnan(half_to_float(b))) {
      ASSERT_EQ(float_to_half(half_to_float(b)), b);
    }
  }
}

TEST_F(Safetensors, AWriterWithoutCloseOrOnAFullDiskLeavesTheOldFile) {
  const std::vector<float> values(100000, 1.F);
  const std::string path = folder_ / "a.safetensors";
  write_safetensors(path, {{"old", {1}, "F32", values.data()}}, {});
  const std::string before = test::read_bytes(path);
  {
    SafetensorsWriter writer(path, {{"a", {2}, "F32", nullptr}, {"b", {2}, "F32", nullptr}}, {});
    writer.add(values.data());
    EXPECT_THROW(writer.close(), BugError);  // b is missing
  }
  EXPECT_EQ(folder_.names(), std::set<std::string>{"a.safetensors"});
  {
    const test::FileSizeLimit limit(50000);
    const std::string message = message_of<SystemError>([&] {
      write_safetensors(path, {{"w", {100000}, "BF16", values.data()}}, {});
    });
    EXPECT_THAT(message, AllOf(HasSubstr("a.safetensors"), HasSubstr("File too large")));
  }
  {
    const test::FileSizeLimit limit(4);  // not even the header
    EXPECT_THROW(write_safetensors(path, {{"w", {1}, "F32", values.data()}}, {}), SystemError);
  }
  EXPECT_EQ(folder_.names(), std::set<std::string>{"a.safetensors"});
  EXPECT_EQ(test::read_bytes(path), before);
  EXPECT_THAT(message_of<InputError>([&] { write_safetensors(folder_ / "no/b.safetensors", {}, {}); }),
              AllOf(HasSubstr("no/b.safetensors"), HasSubstr("folder does not exist")));
  EXPECT_THROW(SafetensorsWriter(path, {{"a", {1}, "F32", nullptr}, {"a", {1}, "F32", nullptr}}, {}),
               BugError);
  EXPECT_THROW(SafetensorsWriter(path, {{"a", {1}, "F64", nullptr}}, {}), BugError);
}

TEST_F(Safetensors, MalformedHeadersAreRefused) {
  EXPECT_THAT(refusal("1234567"), HasSubstr("too short"));
  EXPECT_THAT(refusal(std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10)),
              HasSubstr("past the file's end"));
  EXPECT_THAT(refusal(std::string("\x03\0\0\0\0\0\0\0{}", 10)), HasSubstr("past the file's end"));
  EXPECT_THAT(refusal(file_of("", 0)), HasSubstr("JSON"));
  EXPECT_THAT(refusal(file_of("{\"a\": ", 0)), HasSubstr("JSON"));
  EXPECT_THAT(refusal(file_of("[]", 0)), HasSubstr("JSON"));
  EXPECT_THAT(refusal(file_of("{\"\xFF\": 1}", 0)), HasSubstr("JSON"));
  EXPECT_THAT(refusal(file_of(std::string(100000, '['), 0)), HasSubstr("too deep"));
  EXPECT_THAT(refusal(file_of(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                              R"("w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                              8)),
              HasSubstr("twice"));
}

TEST_F(Safetensors, LyingTensorsAreRefusedByName) {
  const auto one = [&](const json& value, size_t data = 16) {
    const std::string message = refusal(json{{"layer.w", value}}, data);
    EXPECT_THAT(message, HasSubstr("'layer.w'"));
    return message;
  };
  json missing = entry("F32", {4}, {0, 16});
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    json without = missing;
    without.erase(key);
    EXPECT_THAT(one(without), HasSubstr("malformed"));
  }
  EXPECT_THAT(one(json(3)), HasSubstr("malformed"));
  EXPECT_THAT(one(entry("F32", {-4}, {0, 16})), HasSubstr("malformed"));
  EXPECT_THAT(one(entry("F32", {4.0}, {0, 16})), HasSubstr("malformed"));
  EXPECT_THAT(one(entry("F32", {"4"}, {0, 16})), HasSubstr("malformed"));
  EXPECT_THAT(one(entry("F32", 4, {0, 16})), HasSubstr("malformed"));
  EXPECT_THAT(one(entry("F32", {4}, {0, 16, 16})), HasSubstr("malformed"));
  EXPECT_THAT(one(entry("F32", {4}, {-16, 0})), HasSubstr("malformed"));
  EXPECT_THAT(one(entry("F8_E4M3", {16}, {0, 16})), AllOf(HasSubstr("F8_E4M3"), HasSubstr("convert")));
  EXPECT_THAT(one(entry("F32", {8}, {0, 32})), HasSubstr("past the file's end"));
  EXPECT_THAT(one(entry("F32", {4}, {16, 0})), HasSubstr("past the file's end"));
  EXPECT_THAT(one(entry("F32", {4}, {0, ~uint64_t{0}})), HasSubstr("past the file's end"));
  EXPECT_THAT(one(entry("F32", {3}, {0, 16})), AllOf(HasSubstr("16 bytes"), HasSubstr("12")));
  EXPECT_THAT(one(entry("F32", {1ULL << 62, 4}, {0, 0})), HasSubstr("shape"));
  EXPECT_THAT(one(entry("F32", {~uint64_t{0}}, {0, 16})), HasSubstr("shape"));
  EXPECT_THAT(refusal({{"a", entry("F32", {3}, {0, 12})}, {"b", entry("F32", {2}, {8, 16})}}, 16),
              HasSubstr("overlap"));
  EXPECT_THAT(refusal({{"a", entry("F32", {1}, {0, 4})}, {"b", entry("F32", {2}, {8, 16})}}, 16),
              HasSubstr("no tensor"));
  EXPECT_THAT(refusal(json{{"a", entry("F32", {3}, {0, 12})}}, 16), HasSubstr("16 data bytes"));
}

TEST_F(Safetensors, RowsWithoutColumnsAreReadAtOnce) {
  const std::string path = folder_ / "model.safetensors";
  const int64_t rows = int64_t{1} << 60;  // a loop over them would take years
  test::write_bytes(path, file_of(json{{"w", entry("F32", {rows, 0}, {0, 0})}}.dump(), 0));
  open_safetensors(path)->read("w", {0, rows, 0, 0}, nullptr);
}

TEST_F(Safetensors, AFileCutAnywhereIsRefused) {
  const std::string whole =
      test::read_bytes(SELFLENGTHEN_SOURCE_DIR "/tests/reference/gguf/types/F32.safetensors");
  for (size_t cut = 1; cut < whole.size(); cut += cut < 400 ? 7 : 1237) refusal(whole.substr(0, cut));
  refusal(whole.substr(0, whole.size() - 1));
}

TEST_F(Safetensors, AShardedFolderIsOneFile) {
  const auto model = open_safetensors(models + "qwen2");
  const std::string index_path = models + "qwen2/model.safetensors.index.json";
  const json map = json::parse(test::read_bytes(index_path))["weight_map"];
  std::set<std::string> shards;
  ASSERT_EQ(model->tensors().size(), map.size());
  for (const auto& [name, shard] : map.items()) {
    shards.insert(shard.get<std::string>());
    const auto own = open_safetensors(models + "qwen2/" + shard.get<std::string>());
    const WeightInfo* info = model->find(name);
    ASSERT_NE(info, nullptr) << name;
    EXPECT_EQ(info->storage, "BF16");
    EXPECT_EQ(info->shape, own->find(name)->shape);
    const Block block = {0, info->shape.size() == 1 ? 1 : info->shape[0], 0, info->shape.back()};
    EXPECT_EQ(read_block(*model, name, block), read_block(*own, name, block));
  }
  EXPECT_EQ(shards.size(), 2U);
  EXPECT_EQ(model->find("absent"), nullptr);
  EXPECT_EQ(open_safetensors(models + "llama31")->tensors().front().storage, "F16");
}

TEST_F(Safetensors, BadIndexesAreRefused) {
  const float one = 1.F;
  const std::string index = folder_ / "model.safetensors.index.json";
  write_safetensors(folder_ / "s1.safetensors", {{"a", {1}, "F32", &one}}, {});
  const auto refused = [&](const std::string& text) {
    test::write_bytes(index, text);
    return message_of<InputError>([&] { open_safetensors(folder_.path()); });
  };
  EXPECT_THAT(refused(R"({"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}})"),
              AllOf(HasSubstr("s2.safetensors"), HasSubstr("'b'"), HasSubstr("missing")));
  EXPECT_THAT(refused(R"({"weight_map": {"a": "s1.safetensors", "b": "s1.safetensors"}})"),
              AllOf(HasSubstr("s1.safetensors"), HasSubstr("'b'")));
  EXPECT_THAT(refused(R"({"weight_map": {"a": "../s1.safetensors"}})"), HasSubstr("'a'"));
  EXPECT_THAT(refused(R"({"weight_map": {"a": 3}})"), HasSubstr("'a'"));
  EXPECT_THAT(refused(R"({"weight_map": {"a": ")" + std::string(300, 'x') + "\"}}"), HasSubstr("missing"));
  EXPECT_THAT(refused(R"({"weight_map": {}})"), HasSubstr("weight_map"));
  EXPECT_THAT(refused("{"), HasSubstr("weight_map"));
  test::write_bytes(index, R"({"weight_map": {"a": "s1.safetensors"}})");
  EXPECT_EQ(open_safetensors(folder_.path())->tensors().size(), 1U);
}

TEST_F(Safetensors, AFolderWithoutWeightsIsNamed) {
  EXPECT_THAT(message_of<InputError>([&] { open_safetensors(folder_.path()); }),
              AllOf(HasSubstr(folder_.path()), HasSubstr("model.safetensors")));
  EXPECT_THAT(message_of<InputError>([&] { open_safetensors(folder_ / "absent"); }), HasSubstr("absent"));
}

}  // namespace
}  // namespace sl
