#include "evaluate/judge.hpp"

#include <map>
#include <numeric>
#include <set>

#include "core/error.hpp"
#include "core/json_depth.hpp"

namespace sl {
namespace {

using nlohmann::json;

constexpr int lowest_score = 1, highest_score = 10;

// Parsed, or discarded when it is not one JSON object or names something twice, which a plain parse passes
// over.
json parse_object(std::string_view text) {
  if (nests_too_deep(text)) return json::value_t::discarded;
  std::vector<std::set<std::string>> names;
  bool twice = false;
  const auto look = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) names.emplace_back();
    if (event == json::parse_event_t::key) twice |= !names.back().insert(value.get<std::string>()).second;
    if (event == json::parse_event_t::object_end) names.pop_back();
    return true;
  };
  try {
    json object = json::parse(text, look);
    return twice || !object.is_object() ? json(json::value_t::discarded) : object;
  } catch (const json::exception&) {  // also of a number too large for a double
    return json::value_t::discarded;
  }
}

json mean_of(const std::vector<double>& values) {
  if (values.empty()) return nullptr;
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

json summary(const std::vector<const json*>& records) {
  std::vector<double> overall;
  for (const json* record : records) {
    if (const auto quality = quality_of(*record)) overall.push_back(*quality);
  }
  return {{"rows", records.size()}, {"judged", overall.size()}, {"overall", mean_of(overall)}};
}

json summaries_by(const std::vector<JudgedRow>& rows, std::string JudgedRow::*key) {
  std::map<std::string, std::vector<const json*>> groups;
  for (const JudgedRow& row : rows) {
    if (!(row.*key).empty()) groups[row.*key].push_back(row.record);
  }
  json out = json::object();
  for (const auto& [name, members] : groups) out[name] = summary(members);
  return out;
}

}  // namespace

std::string_view judge_fault_name(JudgeFault fault) {
  switch (fault) {
    case JudgeFault::none:
      return "none";
    case JudgeFault::no_object:
      return "no_object";
    case JudgeFault::not_json:
      return "not_json";
    case JudgeFault::wrong_keys:
      return "wrong_keys";
    case JudgeFault::wrong_value:
      return "wrong_value";
  }
  throw BugError("unknown fault of a judgement");
}

Judgement parse_judgement(std::string_view answer) {
  const size_t begin = answer.find('{'), end = answer.rfind('}');
  if (begin == std::string_view::npos || end == std::string_view::npos || end < begin)
    return {JudgeFault::no_object};
  const json object = parse_object(answer.substr(begin, end - begin + 1));
  if (object.is_discarded()) return {JudgeFault::not_json};
  if (object.size() != judge_dimensions.size()) return {JudgeFault::wrong_keys};
  Judgement judgement;
  for (size_t i = 0; i < judge_dimensions.size(); ++i) {
    const auto found = object.find(judge_dimensions[i]);
    if (found == object.end()) return {JudgeFault::wrong_keys};
    // Compared as JSON: a number past int64 is still out of range.
    if (!found->is_number_integer() || *found < lowest_score || *found > highest_score)
      return {JudgeFault::wrong_value};
    judgement.scores[i] = found->get<int>();
  }
  return judgement;
}

std::string judge_question(const Prompts& prompts, const std::string& query, const std::string& response) {
  return prompts.render("judge_response", {{"instruction", query}, {"text", response}});
}

json judge_record(const std::vector<std::string>& answers) {
  json record = not_judged(answers.empty() ? "missing" : "refused");
  record["attempts"] = answers.size();
  for (const std::string& answer : answers) {
    const Judgement judgement = parse_judgement(answer);
    if (judgement.fault != JudgeFault::none) {
      json& count = record["faults"][std::string(judge_fault_name(judgement.fault))];
      count = count.is_null() ? 1 : count.get<int64_t>() + 1;
      record["answer"] = answer;
      continue;
    }
    for (size_t i = 0; i < judge_dimensions.size(); ++i)
      record["scores"][judge_dimensions[i]] = judgement.scores[i];
    record.erase("why");
    record.erase("answer");
    break;
  }
  return record;
}

json not_judged(std::string_view why) {
  return {{"scores", nullptr}, {"why", why}, {"attempts", 0}, {"faults", json::object()}};
}

std::optional<double> quality_of(const json& record) {
  const json& scores = record.at("scores");
  if (scores.is_null()) return std::nullopt;
  double sum = 0.0;
  for (const char* dimension : judge_dimensions) sum += scores.at(dimension).get<double>();
  return sum / static_cast<double>(judge_dimensions.size());
}

Task<json> judge(Engine& engine, Request request, RandomAddress address, int64_t attempts) {
  std::vector<std::string> answers;
  while (static_cast<int64_t>(answers.size()) < attempts) {
    ++address.attempt;
    request.stream = stream_of(address);
    const Completion completion = co_await engine.complete(request);
    answers.push_back(completion.text);
    if (parse_judgement(completion.text).fault == JudgeFault::none) break;
  }
  co_return judge_record(answers);
}

json judge_report(const std::vector<JudgedRow>& rows) {
  std::vector<const json*> records;
  int64_t attempts = 0;
  json why = {{"refused", 0}, {"too_long", 0}, {"missing", 0}}, faults = json::object();
  std::map<std::string, std::vector<double>> by_dimension;
  for (const JudgedRow& row : rows) {
    const json& record = *row.record;
    records.push_back(&record);
    attempts += record.at("attempts").get<int64_t>();
    for (const auto& [fault, count] : record.at("faults").items())
      faults[fault] = faults.value(fault, int64_t{0}) + count.get<int64_t>();
    if (record.at("scores").is_null()) {
      json& count = why.at(record.at("why").get<std::string>());
      count = count.get<int64_t>() + 1;
      continue;
    }
    for (const char* dimension : judge_dimensions)
      by_dimension[dimension].push_back(record.at("scores").at(dimension).get<double>());
  }
  json report = summary(records);
  report["not_judged"] = why;
  report["attempts"] = attempts;
  report["faults"] = faults;
  for (const char* dimension : judge_dimensions) {
    const std::vector<double>& scores = by_dimension[dimension];
    report["dimensions"][dimension] = {
        {"mean", mean_of(scores)}, {"judged", scores.size()}, {"not_judged", rows.size() - scores.size()}};
  }
  report["languages"] = summaries_by(rows, &JudgedRow::language);
  report["ranges"] = summaries_by(rows, &JudgedRow::range);
  report["types"] = summaries_by(rows, &JudgedRow::type);
  return report;
}

}  // namespace sl
