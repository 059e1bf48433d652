#include "cli/tokenizer_of.hpp"

#include <filesystem>

#include "model/source.hpp"

namespace sl {

std::unique_ptr<const Tokenizer> tokenizer_of(const std::string& path) {
  if (std::filesystem::is_directory(path))
    return std::make_unique<const Tokenizer>(Tokenizer::from_huggingface(path));
  return std::move(open_model(path).tokenizer);
}

}  // namespace sl
