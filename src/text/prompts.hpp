// The prompts of the method, as files that users may edit: input/prompts/en/NAME.txt and
// input/prompts/zh/NAME.txt, with placeholders in braces, {instruction}. A brace that does not enclose
// lower-case letters and underscores only stands for itself.
#pragma once

#include "text/repetition.hpp"

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace sl {

// Names of the prompts and the placeholders each must hold, once or more.
struct PromptKind {
  std::string name;
  std::vector<std::string> placeholders;
};
// Those of a run and of its collection:
//   instruct_user      (none)                    asks for a list of writing tasks; user turn of stage 0
//   instruct_begun     {first} {second}          assistant turn already begun: two tasks, number of a third
//   judge_instruction  {instruction}             does it suit an article of more than 2,000 words? yes or no
//   extend             {instruction} {text}      write a longer, richer version of the text
//   length_control     {instruction} {demand}    state the length demand inside the instruction
//   demand_about, demand_above, demand_below     {number}    the demands, as parts of a sentence
//   demand_range       {low} {high}
//   demand_appended    {instruction} {demand}    the demand as a plain sentence behind the instruction
const std::vector<PromptKind>& method_prompts();
// That of an evaluation:
//   judge_response     {instruction} {text}      how good is the text? seven numbers, as JSON
const std::vector<PromptKind>& judge_prompts();

using PromptValues = std::map<std::string, std::string, std::less<>>;

class Prompts {
 public:
  // Reads these prompts of a language below `folder` (input/prompts). White space at a file's end is not part
  // of it. InputError names the file when it is missing or empty, lacks one of its placeholders or has one it
  // must not have.
  static Prompts load(const std::filesystem::path& folder, Language language,
                      const std::vector<PromptKind>& kinds = method_prompts());

  // The prompt with its placeholders replaced, each once: values are never searched for placeholders.
  // BugError when the name is unknown or `values` are not exactly the prompt's placeholders.
  std::string render(std::string_view name, const PromptValues& values) const;

  // Where the model begins a fourth instruction, at which stage 0 stops: a newline and the last line of
  // instruct_begun with its 3 replaced by 4; empty without that prompt.
  const std::string& fourth_marker() const { return fourth_marker_; }

 private:
  // Text, then a placeholder (maybe none, at the end), in turn.
  struct Part {
    std::string text;
    std::string placeholder;
  };
  static std::vector<Part> parse(std::string_view text);

  std::map<std::string, std::vector<Part>, std::less<>> prompts_;
  std::string fourth_marker_;
};

// The seed instructions of a language: the "instruction" of each row of FOLDER/en.jsonl or zh.jsonl.
// InputError names the file and line of a malformed, empty or repeated one, and when there are fewer than
// two.
std::vector<std::string> load_seeds(const std::filesystem::path& folder, Language language);

}  // namespace sl
