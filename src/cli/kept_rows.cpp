#include "cli/kept_rows.hpp"

#include <fmt/format.h>

#include <filesystem>

#include "core/error.hpp"
#include "core/log.hpp"
#include "io/checksum.hpp"
#include "io/json_lines.hpp"

namespace sl {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* marks = "marks";

// The journals that stand beside a file.
std::vector<std::string> journals_of(const std::string& file) {
  const fs::path path(file);
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  const std::string begin = path.filename().string() + ".journal.";
  std::vector<std::string> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string().starts_with(begin)) found.push_back(entry.path().string());
  }
  return found;
}

void learn(json& known, const std::string& kind, int64_t row, const std::string& mark, json record) {
  known[kind][std::to_string(row)][mark] = std::move(record);
}

}  // namespace

std::string mark_of(const json& description) { return checksum_digits(to_line(description)); }

json KeptRows::read(const std::string& file, int64_t rows, const Kinds& kinds) {
  json known = json::object();
  if (file.empty()) return known;
  for (const std::string& path : journals_of(file)) {
    const JournalContent content = read_journal(path);
    if (content.damaged > 0)
      spdlog::warn("{}: {} damaged lines, from line {}, are left out", path, content.damaged,
                   content.first_damaged_line);
    for (const json& one : content.records) {
      learn(known, one.at("kind").get<std::string>(), one.at("row").get<int64_t>(),
            one.at("mark").get<std::string>(), one.at("record"));
    }
  }
  if (!fs::exists(file)) return known;
  const std::vector<JsonRow> finished = read_json_lines(file);
  if (static_cast<int64_t>(finished.size()) > rows) {
    throw InputError(fmt::format("holds {} rows, and --data {}", finished.size(), rows), file,
                     "give another --rows");
  }
  for (size_t i = 0; i < finished.size(); ++i) {
    const json& row = finished[i].value;
    if (!row.contains(marks) || !row[marks].is_object())
      throw InputError("is not a row that an evaluation wrote", fmt::format("{}:{}", file, finished[i].line),
                       "give another --rows");
    for (const auto& [kind, fields] : kinds) {
      if (!row[marks].contains(kind) || !row[marks][kind].is_string()) continue;
      json record = json::object();
      for (const std::string& field : fields) record[field] = row.value(field, json());
      learn(known, kind, static_cast<int64_t>(i), row[marks][kind].get<std::string>(), std::move(record));
    }
  }
  return known;
}

KeptRows::KeptRows(std::string file, json known, int replica)
    : file_(std::move(file)), known_(std::move(known)), replica_(replica) {}

json KeptRows::find(const std::string& kind, int64_t row, const std::string& mark) const {
  const json::json_pointer place =
      json::json_pointer() / kind / std::to_string(row) / mark;  // an object's key, though it is a number
  return known_.contains(place) ? known_.at(place) : json();
}

bool KeptRows::of_another(const std::string& kind, int64_t row, const std::string& mark) const {
  const json::json_pointer place = json::json_pointer() / kind / std::to_string(row);
  return known_.contains(place) && !known_.at(place).contains(mark);
}

void KeptRows::keep(const std::string& kind, int64_t row, const std::string& mark, const json& record) {
  if (file_.empty()) return;
  if (!journal_) journal_ = std::make_unique<Journal>(fmt::format("{}.journal.{}", file_, replica_));
  journal_->append({{"kind", kind}, {"row", row}, {"mark", mark}, {"record", record}});
  journal_->sync_if_due();
}

void KeptRows::add(json& row, const std::string& kind, const std::string& mark, const json& record) {
  row.update(record);
  row[marks][kind] = mark;
}

void KeptRows::remove_journals(const std::string& file) {
  for (const std::string& path : journals_of(file)) fs::remove(path);
}

}  // namespace sl
