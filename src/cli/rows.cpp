#include "cli/rows.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "core/error.hpp"

namespace sl {

std::string place_of_row(const JsonRow& row, const std::string& path) {
  return fmt::format("{}:{}", path, row.line);
}

std::vector<int32_t> token_ids(const JsonRow& row, const std::string& key, int64_t vocabulary,
                               const std::string& path) {
  const std::string where = place_of_row(row, path);
  if (!row.value.contains(key) || !row.value[key].is_array())
    throw InputError(fmt::format("has no list '{}'", key), where, "add it to the row");
  std::vector<int32_t> ids;
  for (const nlohmann::json& one : row.value[key]) {
    if (!one.is_number_integer())
      throw InputError(fmt::format("'{}' holds {}, which is not a token id", key, one.dump()), where,
                       "give whole numbers");
    // A number past int64 reads as unsigned; both comparisons turn it down.
    if (one < 0 || one >= vocabulary) {
      throw InputError(fmt::format("token {} is outside the vocabulary of {}", one.dump(), vocabulary), where,
                       "use ids of this model's tokenizer");
    }
    ids.push_back(one.get<int32_t>());
  }
  return ids;
}

void RowOutput::check(const std::string& path) {
  if (path == "-") return;
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path folder = fs::path(path).parent_path();
  if (!folder.empty() && !fs::is_directory(folder, ignored))
    throw InputError("its folder does not exist", path, "create the folder first");
  const fs::file_status status = fs::status(path, ignored);
  if (path.empty() || (fs::exists(status) && !fs::is_regular_file(status)))
    throw InputError("is not a file that can be replaced", path.empty() ? "--output" : path,
                     "give the name of a file, or - for standard output");
}

RowOutput::RowOutput(const std::string& path) {
  check(path);
  if (path != "-") file_ = std::make_unique<JsonLinesWriter>(path);
}

void RowOutput::write(const nlohmann::json& row) {
  if (file_) return file_->write(row);
  const std::string line = to_line(row) + '\n';
  if (std::fwrite(line.data(), 1, line.size(), stdout) != line.size())
    throw SystemError("write", "standard output", errno);
}

void RowOutput::close() {
  if (file_) return file_->close();
  if (std::fflush(stdout) != 0) throw SystemError("write", "standard output", errno);
}

}  // namespace sl
