#include "cli/method_options.hpp"

#include <filesystem>

namespace sl {

namespace fs = std::filesystem;

std::string built_in_input_folder() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const fs::path& folder : {program / "../share/selflengthen/input", program / "../../../input"}) {
    if (fs::is_directory(folder / "prompts", error)) return folder.lexically_normal().string();
  }
  return "input";
}

std::string input_folder() {
  std::error_code error;
  return fs::is_directory("input/prompts", error) ? "input" : built_in_input_folder();
}

void add_input_options(CommandLine& line, std::string& prompts, std::string& seeds) {
  line.add("prompts", prompts, "folder of the prompts").value_name("DIR");
  line.add("seeds", seeds, "folder of the seed instructions").value_name("DIR");
}

void add_answer_options(CommandLine& line, MethodOptions& method) {
  line.group("Instructions (stage 0)");
  line.add_choice("instruction-pool", method.instruction_pool,
                  {{"seeds", InstructionPool::seeds}, {"growing", InstructionPool::growing}},
                  "what new instructions are drawn from: the seeds, or also those accepted so far");
  line.add("instruction-round", method.instruction_round,
           "growing: slots after which the pool is the seeds again", at_least(1));
  line.add("instruction-wave", method.instruction_wave,
           "growing: slots that draw from the same pool, side by side", at_least(1));
  line.add("instruction-attempts", method.instruction_attempts, "attempts a slot", at_least(1));
  line.add("instruction-tokens", method.instruction_tokens, "longest new instruction, in tokens",
           at_least(1));
  line.add("instruction-min-words", method.instruction_min_words, "an instruction has more words than this",
           at_least(0));
  line.add("instruction-max-words", method.instruction_max_words, "an instruction has fewer words than this",
           at_least(1));
  line.add_choice(
      "judge", method.judge, {{"exact", Judge::exact}, {"choice", Judge::choice}},
      "how the model judges an instruction: by a bare yes, or by the likelier of yes and no (for models too "
      "small to answer in one word)");
  line.group("Responses (stages 1 and 2)");
  line.add("responses", method.responses, "initial responses an instruction", at_least(1));
  line.add("response-attempts", method.response_attempts, "attempts an initial response", at_least(1));
  line.add("straggler-cut", method.straggler_cut,
           "a stage is over when this share of its samples is; 1 waits for all", above_to(0, 1));
}

void add_method_options(CommandLine& line, MethodOptions& method) {
  line.group("The method");
  line.add_choice("language", method.language, {{"en", Language::en}, {"zh", Language::zh}},
                  "language of prompts, seeds and acceptance");
  line.add("seed", method.seed, "seed of every random draw");
  line.add("iterations", method.iterations, "macro-iterations", at_least(1));
  line.group("Instructions (stage 0)");
  line.add("instructions", method.instructions, "instructions an iteration", at_least(1));
  add_answer_options(line, method);
  line.add("extensions", method.extensions, "extended responses an initial response", at_least(1));
  line.add("extension-attempts", method.extension_attempts, "attempts an extended response", at_least(1));
  line.add("micro-iterations", method.micro_iterations, "extensions of an extension inside an attempt",
           at_least(1));
  line.add("extension-ratio", method.extension_ratio,
           "an extended response has more than this times the words", at_least(0));
  line.add("line-keep", method.line_keep, "probability that random line removal keeps a line (stage 3)",
           between(0, 1));
}

}  // namespace sl
