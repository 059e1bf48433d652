// evaluate longen: scores given responses.
#include "evaluate/longen.hpp"

#include <cstdio>

#include "cli/command_line.hpp"
#include "cli/commands.hpp"
#include "cli/rows.hpp"

namespace sl {

int evaluate_longen_command(const Arguments& arguments) {
  std::string data, output = "-";
  CommandLine line(
      "evaluate longen",
      "Scores the lengths of responses against what LonGen's instructions demand, and prints the "
      "means: 1 is within the demanded interval, 0 is less than half or more than 1.5 times it.");
  line.group("Files");
  line.add("data", data,
           "JSON lines as LonGen's (\"type\", \"constraint\"; \"language\" and \"range\" where there) with a "
           "\"response\"")
      .value_name("FILE")
      .required();
  line.add("output", output, "one line of JSON; - is standard output").value_name("FILE");
  line.note(
      "The result holds about, range, above, below and overall (means, null where there is no row), counts, "
      "mean_words, and the same for each of languages and ranges.");
  line.example("selflengthen evaluate longen --data responses.jsonl");
  if (!line.parse(arguments)) return 0;

  RowOutput::check(output);
  const std::vector<LonGenScore> scores = score_longen(read_json_lines(data), data);
  RowOutput file(output);
  file.write(longen_report(scores));
  file.close();
  return 0;
}

}  // namespace sl
