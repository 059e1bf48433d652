#include "model/source.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "io/gguf.hpp"
#include "io/safetensors.hpp"

namespace sl {
namespace {

using nlohmann::json;

TokenizerParts tokenizer_parts(const GgufFile& file) {
  const auto token = [&](const char* key) -> std::optional<int32_t> {
    const std::optional<int64_t> id = file.find_integer(key);
    if (id && (*id < 0 || *id > std::numeric_limits<int32_t>::max())) {
      throw InputError(fmt::format("metadata '{}' is {}, which is no token", key, *id), file.path(),
                       "download or convert the model again");
    }
    return id ? std::optional(static_cast<int32_t>(*id)) : std::nullopt;
  };
  TokenizerParts parts;
  parts.where = file.path();
  parts.model = file.find_string("tokenizer.ggml.model").value_or("");
  parts.pre = file.find_string("tokenizer.ggml.pre").value_or("");
  parts.tokens = file.find_strings("tokenizer.ggml.tokens");
  for (int64_t type : file.find_integers("tokenizer.ggml.token_type"))
    parts.token_types.push_back(static_cast<int32_t>(type));
  parts.merges = file.find_strings("tokenizer.ggml.merges");
  parts.bos = token("tokenizer.ggml.bos_token_id");
  parts.eos = token("tokenizer.ggml.eos_token_id");
  parts.add_bos = file.find_bool("tokenizer.ggml.add_bos_token");
  parts.chat_template = file.find_string("tokenizer.chat_template").value_or("");
  return parts;
}

// generation_config.json and config.json name end tokens, as a number or a list.
void add_end_tokens(const std::string& path, std::vector<int32_t>& tokens) {
  std::ifstream file(path);
  if (!file) return;
  const json content = json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!content.is_object()) throw InputError("is no JSON object", path, "download the model again");
  if (!content.contains("eos_token_id")) return;
  const json& ids = content["eos_token_id"];
  if (ids.is_number_integer()) tokens.push_back(ids.get<int32_t>());
  if (!ids.is_array()) return;
  for (const json& id : ids) {
    if (id.is_number_integer()) tokens.push_back(id.get<int32_t>());
  }
}

std::string fingerprint_of(const ModelSource& source) {
  ModelConfig config = source.config;
  config.rope_scaling.divisors.clear();  // they need not follow a rule that config.json can state
  json identity = {{"config", to_huggingface_json(config, {})},
                   {"rope", source.config.rope_scaling.divisors},
                   {"end", source.end_tokens}};
  for (const WeightInfo& tensor : source.weights->tensors()) {
    identity["tensors"].push_back({tensor.name, tensor.shape, tensor.storage});
  }
  // A sample of the numbers tells models of one shape apart.
  std::vector<float> sample(static_cast<size_t>(std::min<int64_t>(source.config.hidden, 4096)));
  for (const char* name : {"model.norm.weight", "output_norm.weight"}) {
    const WeightInfo* norm = source.weights->find(name);
    if (norm == nullptr) continue;
    if (norm->shape != std::vector<int64_t>{source.config.hidden}) {
      throw InputError(fmt::format("tensor '{}' does not have {} numbers", name, source.config.hidden),
                       source.path, "download or convert the model again");
    }
    source.weights->read(name, {0, 1, 0, static_cast<int64_t>(sample.size())}, sample.data());
  }
  // Names of GGUF tensors are any bytes.
  const std::string text = identity.dump(-1, ' ', false, json::error_handler_t::replace);
  uLong crc = crc32(0, reinterpret_cast<const Bytef*>(text.data()), static_cast<uInt>(text.size()));
  crc = crc32(crc, reinterpret_cast<const Bytef*>(sample.data()),
              static_cast<uInt>(sample.size() * sizeof(float)));
  return fmt::format("{:08x}", crc);
}

}  // namespace

ModelSource open_model(const std::string& path) {
  ModelSource source;
  source.path = path;
  if (!std::filesystem::exists(path)) {
    throw InputError("does not exist", path, "give a Hugging Face folder or a .gguf file");
  }
  if (std::filesystem::is_directory(path)) {
    source.config = config_from_huggingface(path);
    source.weights = open_safetensors(path);
    source.tokenizer = std::make_unique<const Tokenizer>(Tokenizer::from_huggingface(path));
    add_end_tokens(path + "/generation_config.json", source.end_tokens);
    add_end_tokens(path + "/config.json", source.end_tokens);
  } else {
    auto file = std::make_unique<GgufFile>(path);
    source.config = config_from_gguf(*file);
    source.tokenizer = std::make_unique<const Tokenizer>(Tokenizer::from_parts(tokenizer_parts(*file)));
    source.weights = std::move(file);
  }
  source.chat = std::make_unique<const Chat>(*source.tokenizer);
  const std::vector<int32_t>& stops = source.chat->stop_tokens();
  source.end_tokens.insert(source.end_tokens.end(), stops.begin(), stops.end());
  std::sort(source.end_tokens.begin(), source.end_tokens.end());
  source.end_tokens.erase(std::unique(source.end_tokens.begin(), source.end_tokens.end()),
                          source.end_tokens.end());
  if (source.tokenizer->vocabulary_size() > source.config.vocabulary) {
    throw InputError(fmt::format("its tokenizer has {} tokens, its embedding only {}",
                                 source.tokenizer->vocabulary_size(), source.config.vocabulary),
                     path, "use the tokenizer that belongs to the model");
  }
  source.fingerprint = fingerprint_of(source);
  return source;
}

}  // namespace sl
