// text check: the method's rules on texts.
#include "cli/commands.hpp"
#include "cli/options.hpp"
#include "cli/rows.hpp"
#include "text/rules.hpp"

namespace sl {

int text_check_command(const Arguments& arguments) {
  FileChoice files;
  Language language = Language::en;
  CommandLine line(
      "text check",
      "Adds to each row the number of words of its text, whether the method would accept it as a "
      "response, and the parts of it that an extension begins with.");
  line.group("Rules");
  line.add_choice("lang", language, {{"en", Language::en}, {"zh", Language::zh}},
                  "whose rules of acceptance hold")
      .required();
  add_file_options(
      line, files, "rows {\"text\"}",
      "the row plus \"words\", \"accept\", \"first_half\", \"first_two_thirds\", and \"rejected\" "
      "(the rule) when not accepted");
  line.note("A Chinese character counts one word; the rest counts its pieces between white space.");
  line.example("selflengthen text check --lang en --input texts.jsonl --output checked.jsonl");
  if (!line.parse(arguments)) return 0;

  RowOutput::check(files.output);
  std::vector<JsonRow> rows = read_json_lines(files.input);
  for (JsonRow& row : rows) {
    const std::string text = required_string(row, "text", files.input);
    const Rejection rejection = accept(language, text);
    row.value["words"] = count_words(text);
    row.value["accept"] = rejection == Rejection::none;
    if (rejection != Rejection::none) row.value["rejected"] = rejection_name(rejection);
    row.value["first_half"] = first_half(text);
    row.value["first_two_thirds"] = first_two_thirds(text);
  }
  RowOutput output(files.output);
  for (const JsonRow& row : rows) output.write(row.value);
  output.close();
  return 0;
}

}  // namespace sl
