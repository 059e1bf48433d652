// The tokenizer of a model alone, for commands that need no weights.
#pragma once

#include <memory>
#include <string>

#include "text/tokenizer.hpp"

namespace sl {

// `path` as in open_model. Of a folder only the tokenizer's files are read, so the weights need not be there.
std::unique_ptr<const Tokenizer> tokenizer_of(const std::string& path);

}  // namespace sl
