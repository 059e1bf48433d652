// The constants of METHOD.md as options, and where its prompts and seeds are.
#pragma once

#include <string>

#include "cli/command_line.hpp"
#include "lengthen/options.hpp"

namespace sl {

// The project's prompts and seeds: in the working directory, with an installed program, or in the tree that
// the program was built in.
std::string input_folder();
// The same without the working directory: what the program brings along.
std::string built_in_input_folder();
void add_input_options(CommandLine& line, std::string& prompts, std::string& seeds);

// Those of stages 0 and 1, the number of instructions left out.
void add_answer_options(CommandLine& line, MethodOptions& method);
// All of them.
void add_method_options(CommandLine& line, MethodOptions& method);

}  // namespace sl
