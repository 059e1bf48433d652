// evaluate longen: the options. The work is in longen_evaluation.cpp.
#include <set>

#include "cli/commands.hpp"
#include "cli/longen_evaluation.hpp"
#include "cli/rows.hpp"

namespace sl {
namespace {

void define(CommandLine& line, LonGenChoice& choice) {
  line.group("Files");
  line.add("data", choice.data,
           "JSON lines as LonGen's (\"type\", \"constraint\"; \"language\" and \"range\" where there) with a "
           "\"query\", or without --model a \"response\"")
      .value_name("FILE")
      .required();
  line.add("output", choice.output, "one line of JSON; - is standard output").value_name("FILE");
  line.add("rows", choice.rows,
           "the rows with \"response\", \"words\", \"score\" and \"judge\"; what is finished is kept beside "
           "it, and the same command continues")
      .value_name("FILE");
  line.add("table", choice.table, "the means as a table for people; else it is on standard error")
      .value_name("FILE");
  line.group("Model that answers");
  line.add("model", choice.model.model, "Hugging Face folder, or .gguf file").value_name("PATH");
  line.add("adapter", choice.model.adapter, "LoRA adapter in PEFT's format").value_name("DIR");
  line.add("seed", choice.seed, "of the draws; a row's response depends on it and on the row's number");
  line.group("Judge");
  JudgeChoice& judge = choice.judge;
  line.add("judge", judge.asked, "a model judges the responses in seven dimensions, from 1 to 10");
  line.add("judge-model", judge.model, "which; else --model without its adapter").value_name("PATH");
  line.add("judge-attempts", judge.attempts, "answers, until one is a judgement", at_least(1));
  line.add("judge-tokens", judge.tokens, "longest answer", at_least(1));
  line.add("judge-temperature", judge.temperature, "of its draws", at_least(0));
  line.add("judge-export", judge.to, "rows {\"id\", \"messages\"} for a judge elsewhere").value_name("FILE");
  line.add("judge-answers", judge.from, "rows {\"id\", \"answer\"} of a judge elsewhere").value_name("FILE");
  line.add("prompts", judge.prompts, "folder of the prompts").value_name("DIR");
  add_sampling_options(line, choice.sampling);
  add_engine_options(line, choice.engine);
  add_machine_options(line, choice.model);
  line.note(
      "The result holds about, range, above, below and overall (means, null where there is no row), counts, "
      "mean_words, and the same for each of languages and ranges; with a judge its means in judge, and how "
      "many rows and answers gave no judgement. A row's id is its \"id\", or its number from 0.");
  line.note(
      "A judgement is what stands from the first { to the last } of an answer: one JSON object with the "
      "seven dimensions and nothing else, each a whole number from 1 to 10.");
  line.example("selflengthen evaluate longen --data responses.jsonl");
  line.example(
      "mpirun -n 8 selflengthen evaluate longen --data LonGen.jsonl --model MODEL --adapter DIR --judge "
      "--rows rows.jsonl --output report.json");
}

void check(LonGenChoice& choice) {
  JudgeChoice& judge = choice.judge;
  if (!judge.model.empty()) judge.asked = true;
  if (choice.model.model.empty() && !choice.model.adapter.empty())
    throw InputError("belongs to a model", "--adapter", "give --model as well");
  if (judge.asked && !judge.from.empty())
    throw InputError("cannot go with a judge here", "--judge-answers", "choose one of the two judges");
  if (judge.asked && judge.model.empty()) judge.model = choice.model.model;
  if (judge.asked && judge.model.empty())
    throw InputError("there is no model that could judge", "--judge", "give --judge-model or --model");
  std::set<std::string> files;
  for (const std::string& path : {choice.output, choice.rows, choice.table, judge.to}) {
    if (path.empty()) continue;
    RowOutput::check(path);
    if (!files.insert(path).second || path == choice.data || path == judge.from)
      throw InputError("is named twice", path, "give every file a name of its own");
  }
  if (choice.rows == "-") throw InputError("is kept as a file", "--rows", "give the name of one");
  choice.sampling.validate();
  if (!choice.model.model.empty() || judge.asked) resolve_device(choice.model.device);
}

}  // namespace

int evaluate_longen_command(const Arguments& arguments) {
  LonGenChoice choice;
  CommandLine line(
      "evaluate longen",
      "Scores the lengths of responses against what LonGen's instructions demand, and prints the means: 1 is "
      "within the demanded interval, 0 is less than half or more than 1.5 times it. With --model it answers "
      "the instructions first; with --judge a model judges the responses.");
  define(line, choice);
  if (!line.parse(arguments)) return 0;
  check(choice);
  const nlohmann::json options = line.resolved();
  for (const char* name :
       {"temperature", "top-p", "top-k", "repetition-penalty", "max-tokens", "min-tokens", "stop", "seed"})
    choice.sampled[name] = options.at(name);
  evaluate_longen(choice);
  return 0;
}

}  // namespace sl
