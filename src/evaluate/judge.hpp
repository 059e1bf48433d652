// The quality of a response by a model that judges: METHOD.md's seven dimensions, 1 to 10, asked for as JSON
// and read strictly.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/rng.hpp"
#include "rollout/engine.hpp"
#include "rollout/flow.hpp"
#include "text/prompts.hpp"

namespace sl {

constexpr std::array<const char*, 7> judge_dimensions = {
    "relevance", "coherence", "accuracy", "consistency", "clarity", "creativity", "engagement"};

// Why an answer is no judgement.
enum class JudgeFault : uint8_t {
  none,
  no_object,   // there are no braces
  not_json,    // what the braces hold is not JSON, or names something twice
  wrong_keys,  // a dimension is missing, or something else is there
  wrong_value  // something is not a whole number from 1 to 10
};
std::string_view judge_fault_name(JudgeFault fault);

struct Judgement {
  JudgeFault fault = JudgeFault::none;
  std::array<int, judge_dimensions.size()> scores{};  // as judge_dimensions; of a fault, zeros
};

// The judgement in an answer is what stands from its first { to its last }, whatever is around it: one JSON
// object that holds each dimension once, as a whole number (no 8.0, no "8") from 1 to 10, and nothing else.
Judgement parse_judgement(std::string_view answer);

// What the judge is asked, in the language of the prompts, as one user turn.
std::string judge_question(const Prompts& prompts, const std::string& query, const std::string& response);

// A record of one row:
//   {scores: {relevance: 7, ...}, attempts, faults: {not_json: 1, ...}}   of a response that was judged
//   {scores: null, why, attempts, faults, answer}                         of one that was not
// `faults` counts answers that were no judgement, `answer` is the last of them. `why` is "refused" (no
// attempt gave a judgement), "too_long" (the model has no room for the response) or "missing" (no answer).
nlohmann::json judge_record(const std::vector<std::string>& answers);
nlohmann::json not_judged(std::string_view why);
// The mean over the dimensions of a record; nothing where there is no judgement.
std::optional<double> quality_of(const nlohmann::json& record);

// Asks up to `attempts` times, each with draws of its own, until an answer is a judgement; its record.
Task<nlohmann::json> judge(Engine& engine, Request request, RandomAddress address, int64_t attempts);

// One row to report on.
struct JudgedRow {
  std::string language, range, type;
  const nlohmann::json* record = nullptr;
};

// {rows, judged, not_judged: {refused, too_long, missing}, attempts, faults, dimensions: {relevance: {mean,
// judged, not_judged}, ...}, overall, languages, ranges, types: {name: {rows, judged, overall}}}. Means are
// over the rows that were judged, null where there is none; overall is the mean over the dimensions.
nlohmann::json judge_report(const std::vector<JudgedRow>& rows);

}  // namespace sl
