#include "io/json_lines.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "core/error.hpp"
#include "core/json_depth.hpp"

namespace sl {

std::vector<JsonRow> read_json_lines(const std::string& path) {
  std::ifstream file(path);
  if (!file || std::filesystem::is_directory(path))
    throw InputError("cannot be opened as a file", path, "check the path");
  std::vector<JsonRow> rows;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (std::all_of(line.begin(), line.end(), [](char c) { return c == ' ' || c == '\t' || c == '\r'; }))
      continue;
    const auto refuse = [&](const std::string& what) {
      throw InputError(what, fmt::format("{}:{}", path, number), "correct the line or remove it");
    };
    if (nests_too_deep(line)) refuse(fmt::format("nests deeper than {} levels", deepest_json));
    nlohmann::json value;
    try {
      value = nlohmann::json::parse(line);
    } catch (const nlohmann::json::parse_error& error) {
      refuse(fmt::format("is not valid JSON (at byte {} of the line)", error.byte));
    } catch (const nlohmann::json::out_of_range&) {
      refuse("holds a number that is too large");
    }
    if (!value.is_object()) refuse("is not a JSON object");
    rows.push_back({number, std::move(value)});
  }
  if (file.bad()) throw SystemError("read", path, errno);
  if (rows.empty()) throw InputError("holds no rows", path, "give a file with one JSON object a line");
  return rows;
}

std::string required_string(const JsonRow& row, const std::string& key, const std::string& path) {
  if (!row.value.contains(key) || !row.value[key].is_string()) {
    throw InputError(fmt::format("has no string '{}'", key), fmt::format("{}:{}", path, row.line),
                     "add it to the row");
  }
  return row.value[key].get<std::string>();
}

std::string to_line(const nlohmann::json& row) {
  return row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void JsonLinesWriter::write(const nlohmann::json& row) {
  buffer_ += to_line(row);
  buffer_ += '\n';
  if (buffer_.size() > (1U << 16)) flush();
}

void JsonLinesWriter::flush() {
  file_.write(buffer_.data(), buffer_.size());
  buffer_.clear();
}

void JsonLinesWriter::close() {
  flush();
  file_.commit();
}

}  // namespace sl
