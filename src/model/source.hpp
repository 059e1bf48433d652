// A model as the user names it: a Hugging Face folder or a .gguf file, opened but not yet in memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/weights.hpp"
#include "model/adapter.hpp"
#include "model/config.hpp"
#include "model/parameters.hpp"
#include "model/transformer.hpp"
#include "text/chat.hpp"
#include "text/tokenizer.hpp"

namespace sl {

struct ModelSource {
  std::string path;
  ModelConfig config;
  std::unique_ptr<WeightFile> weights;
  std::unique_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<const Chat> chat;
  std::vector<int32_t> end_tokens;  // generation stops at any of these
  std::string fingerprint;          // changes when configuration, tokenizer or tensor list change
};

// InputError when it is neither, or its parts do not fit each other.
ModelSource open_model(const std::string& path);

// A model in memory on this rank: weights read, ready to run. Not movable: Transformer points into it.
class LoadedModel {
 public:
  // With room for adapters of that rank together (ServedAdapters::room_for) to be served at a time.
  LoadedModel(ModelSource source, const Context& context, Communicator& tensor_parallel,
              int64_t adapter_rank = 0);
  LoadedModel(const LoadedModel&) = delete;
  LoadedModel& operator=(const LoadedModel&) = delete;

  const ModelSource& source() const { return source_; }
  const ModelConfig& config() const { return source_.config; }
  const Tokenizer& tokenizer() const { return *source_.tokenizer; }
  const Chat& chat() const { return *source_.chat; }
  const Shard& shard() const { return shard_; }
  Parameters& parameters() { return parameters_; }
  Transformer transformer() const {
    return {context_, &source_.config, &shard_, &parameters_, &tensor_parallel_};
  }
  // To compute with; or f32 whatever the storage dtype, to train.
  Adapter adapter_from(const std::string& folder) const {
    return load_adapter(folder, source_.config, shard_, context_.storage_place());
  }
  Adapter exact_adapter_from(const std::string& folder) const {
    return load_adapter(folder, source_.config, shard_, context_.device);
  }

 private:
  ModelSource source_;
  Context context_;
  Communicator& tensor_parallel_;
  Shard shard_;
  Parameters parameters_;
};

}  // namespace sl
