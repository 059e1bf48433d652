#include "evaluate/longen.hpp"

#include <fmt/format.h>

#include <functional>
#include <map>

#include "core/error.hpp"
#include "text/rules.hpp"

namespace sl {
namespace {

using nlohmann::json;

struct Mean {
  double sum = 0.0;
  int64_t count = 0;
  void add(double value) {
    sum += value;
    ++count;
  }
  json value() const { return count == 0 ? json() : json(sum / static_cast<double>(count)); }
};

json summary(const std::vector<const LonGenScore*>& scores) {
  constexpr LengthType types[] = {LengthType::about, LengthType::range, LengthType::above, LengthType::below};
  std::map<LengthType, Mean> by_type;
  Mean overall, words;
  for (const LonGenScore* one : scores) {
    by_type[one->type].add(one->score);
    overall.add(one->score);
    words.add(static_cast<double>(one->words));
  }
  json out;
  for (const LengthType type : types) {
    out[length_type_name(type)] = by_type[type].value();
    out["counts"][length_type_name(type)] = by_type[type].count;
  }
  out["overall"] = overall.value();
  out["counts"]["overall"] = overall.count;
  out["mean_words"] = words.value();
  return out;
}

json summaries_by(const std::vector<LonGenScore>& scores, std::string LonGenScore::*key) {
  std::map<std::string, std::vector<const LonGenScore*>> groups;
  for (const LonGenScore& one : scores) {
    if (!(one.*key).empty()) groups[one.*key].push_back(&one);
  }
  json out = json::object();
  for (const auto& [name, members] : groups) out[name] = summary(members);
  return out;
}

}  // namespace

std::vector<LonGenScore> score_longen(const std::vector<JsonRow>& rows, const std::string& path) {
  std::vector<LonGenScore> scores;
  for (const JsonRow& row : rows) {
    const std::string response = required_string(row, "response", path);
    const std::string type = required_string(row, "type", path);
    const std::string constraint = required_string(row, "constraint", path);
    LonGenScore score;
    try {
      score.type = parse_length_type(type);
      score.words = count_words(response);
      score.score = length_score(parse_constraint(score.type, constraint), score.words);
    } catch (const InputError& error) {
      throw InputError(fmt::format("{}:{}: {}", path, row.line, error.what()));
    }
    const auto text_of = [&](const char* key) {
      return row.value.contains(key) && row.value[key].is_string() ? row.value[key].get<std::string>() : "";
    };
    score.language = text_of("language");
    score.range = text_of("range");
    scores.push_back(std::move(score));
  }
  return scores;
}

json longen_report(const std::vector<LonGenScore>& scores) {
  std::vector<const LonGenScore*> all;
  for (const LonGenScore& one : scores) all.push_back(&one);
  json out = summary(all);
  out["languages"] = summaries_by(scores, &LonGenScore::language);
  out["ranges"] = summaries_by(scores, &LonGenScore::range);
  return out;
}

}  // namespace sl
