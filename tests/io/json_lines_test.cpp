// JSON lines: what is wrong is named with its line, and a file is whole or not there.
#include "io/json_lines.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.hpp"
#include "scratch.hpp"

namespace sl {
namespace {

using nlohmann::json;
using test::message_of;
using test::ScratchFolder;
using testing::AllOf;
using testing::HasSubstr;

class JsonLines : public testing::Test {
 protected:
  std::string refusal(const std::string& bytes) {
    test::write_bytes(path_, bytes);
    return message_of<InputError>([&] { read_json_lines(path_); });
  }
  ScratchFolder folder_;
  std::string path_ = folder_ / "rows.jsonl";
};

TEST_F(JsonLines, RowsKeepTheirLineNumbers) {
  test::write_bytes(path_,
                    "{\"a\": 1}\n\n  \t\r\n{\"b\": \"长\\u00e9\\n\"}\r\n{\"c\": null}");  // no last newline
  const auto rows = read_json_lines(path_);
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0].line, 1);
  EXPECT_EQ(rows[1].line, 4);
  EXPECT_EQ(rows[1].value, (json{{"b", "长é\n"}}));
  EXPECT_EQ(rows[2].line, 5);
}

TEST_F(JsonLines, MalformedLinesAreNamed) {
  const std::string good = "{\"a\": 1}\n";
  EXPECT_THAT(refusal(good + "{\"a\": }\n"), AllOf(HasSubstr(path_ + ":2:"), HasSubstr("byte 7")));
  EXPECT_THAT(refusal(good + good + "{\"a\": 1\n"), HasSubstr(path_ + ":3:"));
  EXPECT_THAT(refusal("[1, 2]\n"), AllOf(HasSubstr(path_ + ":1:"), HasSubstr("not a JSON object")));
  EXPECT_THAT(refusal(good + "\n{\"a\": \"\xC3(\"}\n"), HasSubstr(path_ + ":3:"));  // not UTF-8
  EXPECT_THAT(refusal("{\"a\": \"\xED\xA0\x80\"}\n"), HasSubstr(path_ + ":1:"));    // a coded surrogate
  EXPECT_THAT(refusal("{\"a\": \"\\ud800\"}\n"), HasSubstr(path_ + ":1:"));         // half a pair
  EXPECT_THAT(refusal(good + std::string(3, '\0') + "\n"), HasSubstr(path_ + ":2:"));
  EXPECT_THAT(refusal(good + "{\"a\": 1} {\"a\": 2}\n"), HasSubstr(path_ + ":2:"));
}

TEST_F(JsonLines, NumbersTooLargeAndTextsTooDeepAreNamed) {
  EXPECT_THAT(refusal("{}\n{\"a\": 1e999}\n"), AllOf(HasSubstr(path_ + ":2:"), HasSubstr("too large")));
  const auto nested = [](size_t levels) {
    return "{\"a\": \"[[\\\"[\", \"b\": " + std::string(levels, '[') + std::string(levels, ']') + "}\n";
  };
  EXPECT_THAT(refusal(nested(1000000)), AllOf(HasSubstr(path_ + ":1:"), HasSubstr("deeper than 256")));
  EXPECT_THAT(refusal(nested(256)), HasSubstr("deeper"));
  test::write_bytes(path_, nested(255));
  EXPECT_EQ(read_json_lines(path_).size(), 1U);
}

TEST_F(JsonLines, EmptyAndAbsentFilesAreNamed) {
  EXPECT_THAT(refusal(""), AllOf(HasSubstr(path_), HasSubstr("no rows")));
  EXPECT_THAT(refusal("\n \n"), HasSubstr("no rows"));
  EXPECT_THAT(message_of<InputError>([&] { read_json_lines(folder_ / "absent"); }), HasSubstr("absent"));
  EXPECT_THAT(message_of<InputError>([&] { read_json_lines(folder_.path()); }),
              AllOf(HasSubstr(folder_.path()), HasSubstr("cannot be opened as a file")));
}

TEST_F(JsonLines, RequiredStringsAreNamed) {
  const JsonRow row = {17, {{"text", "x"}, {"number", 3}}};
  EXPECT_EQ(required_string(row, "text", "in.jsonl"), "x");
  for (const char* key : {"absent", "number"}) {
    EXPECT_THAT(message_of<InputError>([&] { required_string(row, key, "in.jsonl"); }),
                AllOf(HasSubstr("in.jsonl:17"), HasSubstr(key)));
  }
}

TEST_F(JsonLines, WhatIsWrittenIsRead) {
  {
    JsonLinesWriter writer(path_);
    for (int i = 0; i < 5000; ++i) writer.write({{"i", i}, {"text", std::string(50, 'x') + "\n长\""}});
    EXPECT_EQ(folder_.names(), std::set<std::string>{"rows.jsonl.partial"});
    writer.close();
  }
  EXPECT_EQ(folder_.names(), std::set<std::string>{"rows.jsonl"});
  const auto rows = read_json_lines(path_);
  ASSERT_EQ(rows.size(), 5000U);
  EXPECT_EQ(rows[4999].value, (json{{"i", 4999}, {"text", std::string(50, 'x') + "\n长\""}}));
}

TEST_F(JsonLines, BytesThatAreNotUtf8AreReplaced) {
  EXPECT_EQ(json::parse(to_line({{"text", "a\xFFz"}}))["text"], "a\uFFFDz");
}

TEST_F(JsonLines, WithoutCloseOrOnAFullDiskTheOldFileStays) {
  test::write_bytes(path_, "{\"old\": 1}\n");
  const json row = {{"text", std::string(1000, 'x')}};
  {
    JsonLinesWriter writer(path_);
    for (int i = 0; i < 1000; ++i) writer.write(row);
  }
  EXPECT_EQ(folder_.names(), std::set<std::string>{"rows.jsonl"});
  for (int rows : {10, 1000}) {  // fails in close(), and while writing
    const std::string message = message_of<SystemError>([&] {
      const test::FileSizeLimit limit(5000);
      JsonLinesWriter writer(path_);
      for (int i = 0; i < rows; ++i) writer.write(row);
      writer.close();
    });
    EXPECT_THAT(message, AllOf(HasSubstr("rows.jsonl"), HasSubstr("File too large")));
    EXPECT_EQ(folder_.names(), std::set<std::string>{"rows.jsonl"});
  }
  EXPECT_EQ(test::read_bytes(path_), "{\"old\": 1}\n");
  EXPECT_THAT(message_of<InputError>([&] { JsonLinesWriter writer(folder_ / "no/rows.jsonl"); }),
              HasSubstr("no/rows.jsonl"));
}

}  // namespace
}  // namespace sl
