#include "text/prompts.hpp"

#include "core/error.hpp"
#include "text/rules.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <set>

namespace sl {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view keep_remedy = "restore the file from the project's input folder";

std::string read_text(const fs::path& path, std::string_view what) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw InputError("cannot read " + std::string(what), path.string(), keep_remedy);
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (const auto bad = first_invalid_utf8(text)) {
    throw InputError("byte " + std::to_string(*bad) + " is not UTF-8", path.string(),
                     "save the file as UTF-8");
  }
  return text;
}

std::string fourth_marker_of(std::string_view begun, const fs::path& path) {
  std::string line(begun.substr(begun.find_last_of('\n') + 1));
  const size_t three = line.find('3');
  if (three == std::string::npos || three != line.find_last_of("0123456789") || line.size() == begun.size()) {
    throw InputError("the prompt's last line does not number a third instruction", path.string(),
                     "end the file with a line such as '3:'");
  }
  line[three] = '4';
  return "\n" + line;
}

std::string braced(const std::string& name) { return "{" + name + "}"; }

}  // namespace

const std::vector<PromptKind>& method_prompts() {
  static const std::vector<PromptKind> kinds = {{"instruct_user", {}},
                                                {"instruct_begun", {"first", "second"}},
                                                {"judge_instruction", {"instruction"}},
                                                {"extend", {"instruction", "text"}},
                                                {"length_control", {"instruction", "demand"}},
                                                {"demand_about", {"number"}},
                                                {"demand_range", {"low", "high"}},
                                                {"demand_above", {"number"}},
                                                {"demand_below", {"number"}},
                                                {"demand_appended", {"instruction", "demand"}}};
  return kinds;
}

const std::vector<PromptKind>& judge_prompts() {
  static const std::vector<PromptKind> kinds = {{"judge_response", {"instruction", "text"}}};
  return kinds;
}

Prompts Prompts::load(const fs::path& folder, Language language, const std::vector<PromptKind>& kinds) {
  Prompts prompts;
  for (const PromptKind& kind : kinds) {
    const fs::path path = folder / language_name(language) / (kind.name + ".txt");
    const std::string text = read_text(path, "the prompt '" + kind.name + "'");
    const std::string_view trimmed = trim_end(text);
    if (trimmed.empty()) throw InputError("the prompt is empty", path.string(), keep_remedy);
    auto parts = parse(trimmed);
    std::set<std::string> found;
    for (const Part& part : parts) {
      if (!part.placeholder.empty()) found.insert(part.placeholder);
    }
    for (const std::string& wanted : kind.placeholders) {
      if (found.erase(wanted) == 0) {
        throw InputError("the prompt lacks " + braced(wanted), path.string(),
                         "write it where the value belongs");
      }
    }
    if (!found.empty()) {
      throw InputError(
          "the prompt has an unknown placeholder " + braced(*found.begin()), path.string(),
          kind.placeholders.empty()
              ? "it takes none"
              : "it takes " + braced(kind.placeholders.front()) +
                    (kind.placeholders.size() > 1 ? " and " + braced(kind.placeholders.back()) : ""));
    }
    if (kind.name == "instruct_begun") prompts.fourth_marker_ = fourth_marker_of(trimmed, path);
    prompts.prompts_.emplace(kind.name, std::move(parts));
  }
  return prompts;
}

std::vector<Prompts::Part> Prompts::parse(std::string_view text) {
  static constexpr std::string_view name_characters = "abcdefghijklmnopqrstuvwxyz_";
  std::vector<Part> parts(1);
  for (size_t at = 0; at < text.size();) {
    if (text[at] == '{') {
      const size_t end = text.find_first_not_of(name_characters, at + 1);
      if (end != std::string_view::npos && text[end] == '}' && end > at + 1) {
        parts.back().placeholder = text.substr(at + 1, end - at - 1);
        parts.emplace_back();
        at = end + 1;
        continue;
      }
    }
    parts.back().text += text[at++];
  }
  return parts;
}

std::string Prompts::render(std::string_view name, const PromptValues& values) const {
  const auto prompt = prompts_.find(name);
  require(prompt != prompts_.end(), "no prompt named " + std::string(name));
  std::set<std::string_view> used;
  std::string text;
  for (const Part& part : prompt->second) {
    text += part.text;
    if (part.placeholder.empty()) continue;
    const auto value = values.find(part.placeholder);
    require(value != values.end(), "no value for {" + part.placeholder + "} of prompt " + std::string(name));
    text += value->second;
    used.insert(value->first);
  }
  require(used.size() == values.size(),
          "a value that prompt " + std::string(name) + " has no placeholder for");
  return text;
}

std::vector<std::string> load_seeds(const fs::path& folder, Language language) {
  const fs::path path = folder / (std::string(language_name(language)) + ".jsonl");
  const std::string text = read_text(path, "the seed instructions");
  std::vector<std::string> seeds;
  std::set<std::string> seen;
  int64_t number = 0;
  for (const std::string_view line : split(text, "\n")) {
    const std::string where = path.string() + " line " + std::to_string(++number);
    if (trim(line).empty()) continue;
    const auto row = nlohmann::json::parse(line, nullptr, false);
    if (!row.is_object() || !row.contains("instruction") || !row["instruction"].is_string()) {
      throw InputError("not a JSON object with a text 'instruction'", where,
                       R"(write rows such as {"instruction": "Write ...", "kind": "..."})");
    }
    const std::string seed(trim(row["instruction"].get_ref<const std::string&>()));
    if (seed.empty()) throw InputError("the seed instruction is empty", where, "remove the row");
    if (!seen.insert(seed).second) throw InputError("the seed instruction occurs twice", where, "remove one");
    seeds.push_back(seed);
  }
  if (seeds.size() < 2) {
    throw InputError("fewer than 2 seed instructions", path.string(),
                     "stage 0 draws pairs: give at least 2 rows");
  }
  return seeds;
}

}  // namespace sl
