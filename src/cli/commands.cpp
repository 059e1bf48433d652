#include "cli/commands.hpp"

#include <fmt/format.h>

#include <cstdio>

#include "cli/nearest.hpp"
#include "core/error.hpp"

namespace sl {
namespace {

struct Command {
  const char* name;  // one word or two
  const char* summary;
  const char* example;
  int (*run)(const Arguments& arguments);
};

constexpr Command commands[] = {
    {"run", "the whole method: rollouts and training, again and again, resumable",
     "--config input/quickstart.cfg --out runs/quickstart", run_command},
    {"collect", "after a run: further responses, and the final training set with demands on the length",
     "--run runs/quickstart --instructions 40 --batch 20", collect_command},
    {"generate", "responses to prompts", "--model MODEL --input prompts.jsonl --output responses.jsonl",
     generate_command},
    {"score", "log-probability of every token of texts, and perplexity",
     "--model MODEL --input texts.jsonl --output scores.jsonl", score_command},
    {"train", "supervised fine-tuning on conversations, resumable",
     "--model MODEL --data answers.jsonl --output my_adapter", train_command},
    {"export", "datasets of a run as JSON lines; a merged model as a Hugging Face folder",
     "--model MODEL --adapter DIR --output FOLDER", export_command},
    {"inspect", "what is in a run, a model, an adapter or a dataset; whether a run is done",
     "runs/quickstart", inspect_command},
    {"evaluate longen", "how well responses meet the lengths that LonGen demands, and how good they are",
     "--model MODEL --data LonGen.jsonl --judge", evaluate_longen_command},
    {"evaluate choice", "how often the right choice is the likeliest", "--model MODEL --data questions.jsonl",
     evaluate_choice_command},
    {"text check", "words of texts, and whether the method would accept them",
     "--lang en --input texts.jsonl --output checked.jsonl", text_check_command},
    {"tokenize", "texts to token ids", "--model MODEL --input texts.jsonl --output tokens.jsonl",
     tokenize_command},
    {"detokenize", "token ids to texts", "--model MODEL --input tokens.jsonl --output texts.jsonl",
     detokenize_command},
    {"bench linear", "products of a model alone, beside what the machine allows",
     "--shape smollm2-135m --batch 32", bench_linear_command},
    {"bench attention", "attention alone, packed and paged", "--shape qwen2-7b --batch 64 --context 4096",
     bench_attention_command},
    {"bench sampling", "drawing tokens", "--shape qwen2-7b --batch 256", bench_sampling_command},
    {"bench collective", "sums between ranks", "--to 1048576", bench_collective_command},
    {"bench io", "tables, checkpoints and journals on a file system", "--folder /tmp --megabytes 64",
     bench_io_command},
    {"bench decode", "a step of decoding", "--shape smollm2-135m --batch 32 --context 512",
     bench_decode_command},
    {"bench prefill", "reading a prompt", "--shape smollm2-135m --context 2048", bench_prefill_command},
    {"bench train", "steps of training", "--shape smollm2-135m --context 512", bench_train_command},
    {"bench rollout", "the engine under the load of a stage",
     "--shape smollm2-135m --input-tokens 100 --output-tokens 400 --count 64", bench_rollout_command},
    {"bench simulate", "a stage on up to thousands of replicas, from measured steps",
     "--lengths lognormal:1000,0.5 --count 10000", bench_simulate_command},
};

std::string overview() {
  std::string text =
      "selflengthen: teaches a language model to write long texts, by itself (Self-Lengthen, arXiv "
      "2410.23933).\n\n"
      "A Generator answers instructions, an Extender rewrites answers into longer ones, both learn from the "
      "result,\nand the next round starts from longer answers. One program does it all, on one rank or, "
      "under mpirun or srun,\non many. MODEL is a Hugging Face folder or a .gguf file; rows are JSON "
      "lines.\n\n"
      "Usage: selflengthen COMMAND [options]\n\nCommands\n";
  for (const Command& command : commands) {
    text += fmt::format("  {:<16} {}\n", command.name, command.summary);
  }
  text += "\nExamples\n";
  for (const Command& command : commands) {
    text += fmt::format("  selflengthen {} {}\n", command.name, command.example);
  }
  text +=
      "\nselflengthen COMMAND --help explains the command, its rows and its options; --version prints the "
      "version.\n"
      "Exit codes: 0 done (or stopped by a signal with everything saved), 1 failed, 2 bad usage or input.\n";
  return text;
}

}  // namespace

int run_command_line(const Arguments& arguments) {
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "help") {
    std::fputs(overview().c_str(), stdout);
    return 0;
  }
  if (arguments[0] == "--version") {
    fmt::print("selflengthen {}\n", SELFLENGTHEN_VERSION);
    return 0;
  }
  const std::string two = arguments.size() > 1 ? arguments[0] + " " + arguments[1] : arguments[0];
  std::vector<std::string> names;
  std::string same_first_word;
  for (const Command& command : commands) {
    const std::string name = command.name;
    if (name == arguments[0]) return command.run({arguments.begin() + 1, arguments.end()});
    if (name == two) return command.run({arguments.begin() + 2, arguments.end()});
    names.push_back(name);
    if (same_first_word.empty() && name.starts_with(arguments[0] + " ")) same_first_word = name;
  }
  if (!same_first_word.empty() && two.ends_with(" --help")) return run_command_line({"--help"});
  // "text chek" is near a command of two words; in "genrate --model" only the first word is the command.
  std::string near = nearest_name(two, names);
  if (near.empty()) near = same_first_word.empty() ? nearest_name(arguments[0], names) : same_first_word;
  throw InputError("no such command", same_first_word.empty() ? arguments[0] : two,
                   near.empty() ? "see selflengthen --help" : fmt::format("did you mean '{}'?", near));
}

}  // namespace sl
