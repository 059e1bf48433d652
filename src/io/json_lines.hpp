// JSON lines: one object a line. Reading names the line of what is wrong; writing is whole or not at all.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "io/durable.hpp"

namespace sl {

struct JsonRow {
  int64_t line = 0;  // from 1
  nlohmann::json value;
};

// Every non-blank line, which must be a JSON object in valid UTF-8; InputError "<path>:<line>: ..."
// otherwise, and when the file cannot be read or holds no row.
std::vector<JsonRow> read_json_lines(const std::string& path);

// row[key] as a string; InputError with path and line when it is missing or of another type.
std::string required_string(const JsonRow& row, const std::string& key, const std::string& path);

// Writes to a temporary name; close() makes the file durable and renames it; without it nothing is left
// behind.
class JsonLinesWriter {
 public:
  explicit JsonLinesWriter(std::string path) : file_(std::move(path)) {}
  void write(const nlohmann::json& row);  // SystemError on a full disk, at the latest in close()
  void close();

 private:
  void flush();

  DurableFile file_;
  std::string buffer_;
};

// One line of JSON; bytes that are not UTF-8 become U+FFFD.
std::string to_line(const nlohmann::json& row);

}  // namespace sl
