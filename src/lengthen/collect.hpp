// The collection of METHOD.md, after the last macro-iteration: the trained Generator answers further
// instructions, in batches, and everything that was ever accepted becomes the final training set, with
// demands on the length in some of its instructions. All of it is in the run's folder `collected`; calling
// this again continues there.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lengthen/length_control.hpp"
#include "lengthen/session.hpp"

namespace sl {

enum class FinalResponses : uint8_t { all, kept };

struct CollectOptions {
  int64_t instructions = 5000;  // further ones
  int64_t batch = 500;          // of them, each with stages and files of its own
  FinalResponses responses = FinalResponses::all;
  LengthControl control;
  WeaveOptions weave;
};

// The run whose Generator answers.
struct FinishedRun {
  RunFolder folder;
  int64_t iterations = 0;  // that are finished
  std::string generator() const { return folder.adapter(iterations, "generator"); }
};

// `run` is its run.json. InputError when no iteration is finished, or something of a finished one is missing.
FinishedRun finished_run(const RunFolder& folder, const nlohmann::json& run);

// The seed of a collection's draws: none of them is one of the run's own, nor of a collection that an earlier
// iteration's Generator answered.
uint64_t collection_seed(uint64_t seed, int64_t iterations);

// The prompts of both languages: a response may be in the other one.
using PromptsByLanguage = std::map<Language, Prompts>;

// Collective over the world; session.folder is the folder of the collection. Throws Stopped on every rank
// when a signal asked for it.
void collect(Session& session, const FinishedRun& run, const CollectOptions& options,
             const PromptsByLanguage& prompts, const std::vector<std::string>& seeds);

// What is in the final set, by source and by demand, as a text for people.
std::string final_table(const RunFolder& collected);

}  // namespace sl
