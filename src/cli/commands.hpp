// The commands of the program. Each takes the arguments behind its name and returns the exit code; what goes
// wrong arrives in main as an exception.
#pragma once

#include <string>
#include <vector>

namespace sl {

using Arguments = std::vector<std::string>;

int run_command(const Arguments& arguments);
int collect_command(const Arguments& arguments);
int generate_command(const Arguments& arguments);
int score_command(const Arguments& arguments);
int train_command(const Arguments& arguments);
int export_command(const Arguments& arguments);
int inspect_command(const Arguments& arguments);
int evaluate_longen_command(const Arguments& arguments);
int evaluate_choice_command(const Arguments& arguments);
int bench_linear_command(const Arguments& arguments);
int bench_decode_command(const Arguments& arguments);
int bench_prefill_command(const Arguments& arguments);
int bench_rollout_command(const Arguments& arguments);
int bench_simulate_command(const Arguments& arguments);
int bench_train_command(const Arguments& arguments);
int bench_attention_command(const Arguments& arguments);
int bench_sampling_command(const Arguments& arguments);
int bench_collective_command(const Arguments& arguments);
int bench_io_command(const Arguments& arguments);
int text_check_command(const Arguments& arguments);
int tokenize_command(const Arguments& arguments);
int detokenize_command(const Arguments& arguments);

// The whole command line behind the program's name: finds the command and runs it, or prints the help.
int run_command_line(const Arguments& arguments);

}  // namespace sl
