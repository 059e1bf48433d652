// What an evaluation has finished, kept beside the file of rows that it will write: FILE.journal.0, .1 and so
// on, one a replica, so that the same command continues after a kill, on any ranks. A mark says of what a
// record is: by which model, with which options, of which row.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/journal.hpp"

namespace sl {

// The mark of what is described.
std::string mark_of(const nlohmann::json& description);

class KeptRows {
 public:
  // The fields of each kind of record; a row of the file has them all beside its own.
  using Kinds = std::map<std::string, std::vector<std::string>>;

  // `file` is where `rows` rows will be. What journals and the file itself hold. InputError when the file
  // holds other rows than an evaluation's, or more of them: they would be lost.
  static nlohmann::json read(const std::string& file, int64_t rows, const Kinds& kinds);

  // `known` is what read() gave, on every rank; `replica` names the journal. An empty `file`: nothing is
  // kept.
  KeptRows(std::string file, nlohmann::json known, int replica);

  // What is known of a row under `kind` and `mark`; null when nothing is.
  nlohmann::json find(const std::string& kind, int64_t row, const std::string& mark) const;
  // Whether something is known of it, but under other marks.
  bool of_another(const std::string& kind, int64_t row, const std::string& mark) const;
  // On one rank of the replica.
  void keep(const std::string& kind, int64_t row, const std::string& mark, const nlohmann::json& record);

  // Puts a record into its row, for the file.
  static void add(nlohmann::json& row, const std::string& kind, const std::string& mark,
                  const nlohmann::json& record);
  // Once the file is written.
  static void remove_journals(const std::string& file);

 private:
  std::string file_;
  nlohmann::json known_;  // kind -> row -> mark -> record
  int replica_;
  std::unique_ptr<Journal> journal_;  // made by the first record
};

}  // namespace sl
