// What the commands over JSON lines share: rows in, rows out, and messages that name the row.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/json_lines.hpp"

namespace sl {

// "path:line", for messages.
std::string place_of_row(const JsonRow& row, const std::string& path);

// row["tokens"] (or another key) as ids of a vocabulary of so many; InputError with path and line otherwise.
std::vector<int32_t> token_ids(const JsonRow& row, const std::string& key, int64_t vocabulary,
                               const std::string& path);

// Where rows go: a file that appears whole when close() returns, or standard output for "-".
class RowOutput {
 public:
  // InputError, before any work, when the file could not be put there: its folder is missing, or the name is
  // a folder or a device.
  static void check(const std::string& path);
  explicit RowOutput(const std::string& path);

  void write(const nlohmann::json& row);
  void close();

 private:
  std::unique_ptr<JsonLinesWriter> file_;  // none: standard output
};

}  // namespace sl
