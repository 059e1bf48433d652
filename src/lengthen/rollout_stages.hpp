// Stages 0 to 2 of METHOD.md over the samples of an iteration, or of a batch of the collection: each runs to
// its end and becomes a table of the run folder (doc/files.md).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "io/dataset.hpp"
#include "lengthen/stage.hpp"

namespace sl {

// All calls are collective over the world.
class RolloutStages {
 public:
  // `number` of the iteration or batch. All that is passed outlives it. An iteration can do nothing with a
  // stage that accepts nothing, and gets an InputError; of a batch that may be, and is a warning.
  RolloutStages(Session& session, int64_t number, const std::vector<std::string>& seeds,
                bool may_be_empty = false)
      : session_(session), number_(number), seeds_(seeds), may_be_empty_(may_be_empty) {}

  // The stage's file when it is finished; else what `make` makes, which every rank has whole, written
  // together.
  Table table_of(const std::string& stage, const std::function<Table()>& make);

  Table instruct(Engine& engine);
  Table respond_to(const Table& instructions, Engine& engine);
  Table extend_all(const Table& initial, Engine& engine);

  // To the metrics and the log.
  void note(StageId stage, const StageResult& result, const Stopwatch& watch);
  // InputError: `what` left an iteration with nothing to go on with.
  [[noreturn]] void refuse(const std::string& what) const;

 private:
  const MethodOptions& method() const { return session_.method; }
  void accepted_nothing(const std::string& what, const std::string& remedy) const;
  Table response_table(StageId stage, const StageResult& result) const;

  Session& session_;
  int64_t number_;
  const std::vector<std::string>& seeds_;
  bool may_be_empty_;
};

}  // namespace sl
