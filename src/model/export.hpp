// Writing a model as a Hugging Face folder that Transformers loads.
#pragma once

#include <string>

#include "model/parameters.hpp"
#include "model/source.hpp"

namespace sl {

// model.safetensors (storage F32, BF16 or F16), the tokenizer's files and, last, config.json into `folder`,
// which is made when missing. Tokenizer files are copied from a Hugging Face source and made from the
// metadata of a GGUF one. Collective over the tensor-parallel group; its rank 0 writes when `writer`.
void write_model_files(const std::string& folder, const ModelSource& source, const Parameters& parameters,
                       const std::string& storage, bool writer, Communicator& tensor_parallel);

}  // namespace sl
