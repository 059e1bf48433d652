#include "evaluate/longen.hpp"

#include <fmt/format.h>

#include <functional>
#include <map>

#include "core/error.hpp"
#include "text/rules.hpp"

namespace sl {
namespace {

using nlohmann::json;

constexpr LengthType all_types[] = {LengthType::about, LengthType::range, LengthType::above,
                                    LengthType::below};

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
  std::map<LengthType, Mean> by_type;
  Mean overall, words;
  for (const LonGenScore* one : scores) {
    by_type[one->type].add(one->score);
    overall.add(one->score);
    words.add(static_cast<double>(one->words));
  }
  json out;
  for (const LengthType type : all_types) {
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

// "all" comes last among languages and ranges, behind letters and digits.
const std::string every = "~all";

std::string shown(const std::string& name) { return name == every ? "all" : name; }

std::string cell(const json& value, int digits) {
  return value.is_null() ? "-" : fmt::format("{:.{}f}", value.get<double>(), digits);
}

std::string table_cells(const json& one) {
  std::string cells =
      fmt::format("{:>5}{:>10}", one["counts"]["overall"].get<int64_t>(), cell(one["mean_words"], 1));
  for (const LengthType type : all_types) cells += fmt::format("{:>8}", cell(one[length_type_name(type)], 3));
  return cells + fmt::format("{:>9}", cell(one["overall"], 3));
}

}  // namespace

LonGenScore score_longen(const JsonRow& row, const std::string& response, const std::string& path) {
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
  return score;
}

json longen_report(const std::vector<LonGenScore>& scores) {
  std::vector<const LonGenScore*> all;
  for (const LonGenScore& one : scores) all.push_back(&one);
  json out = summary(all);
  out["languages"] = summaries_by(scores, &LonGenScore::language);
  out["ranges"] = summaries_by(scores, &LonGenScore::range);
  return out;
}

std::string longen_table(const std::vector<LonGenScore>& scores,
                         const std::vector<std::optional<double>>& quality) {
  std::map<std::string, std::map<std::string, std::vector<size_t>>> lines;  // language -> range -> rows
  const auto named = [](const std::string& name) { return name.empty() ? "-" : name; };
  for (size_t i = 0; i < scores.size(); ++i) {
    const std::string language = named(scores[i].language), range = named(scores[i].range);
    for (const std::string& of_language : {language, every}) {
      for (const std::string& of_range : {range, every}) lines[of_language][of_range].push_back(i);
    }
  }
  std::string text = fmt::format("{:<10}{:<8}{:>5}{:>10}{:>8}{:>8}{:>8}{:>8}{:>9}", "language", "range",
                                 "rows", "words", "about", "range", "above", "below", "overall");
  text += quality.empty() ? "\n" : fmt::format("{:>9}{:>8}\n", "quality", "judged");
  for (const auto& [language, ranges] : lines) {
    for (const auto& [range, members] : ranges) {
      std::vector<const LonGenScore*> chosen;
      for (const size_t i : members) chosen.push_back(&scores[i]);
      text += fmt::format("{:<10}{:<8}", shown(language), shown(range)) + table_cells(summary(chosen));
      if (!quality.empty()) {
        Mean judged;
        for (const size_t i : members) {
          if (quality[i]) judged.add(*quality[i]);
        }
        text += fmt::format("{:>9}{:>8}", cell(judged.value(), 2), judged.count);
      }
      text += '\n';
    }
  }
  return text;
}

}  // namespace sl
