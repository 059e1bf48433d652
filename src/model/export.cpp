#include "model/export.hpp"

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "io/durable.hpp"
#include "io/gguf.hpp"
#include "io/safetensors.hpp"

namespace sl {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

void copy_tokenizer(const std::string& from, const std::string& to) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "generation_config.json", "chat_template.jinja", "vocab.json", "merges.txt"}) {
    if (const auto text = read_if_there(from + "/" + name)) write_atomically(to + "/" + name, *text);
  }
}

json pre_tokenizer_json(const std::string& name, const std::string& where) {
  json steps = json::array();
  for (const std::string& pattern : patterns_of_gguf(name, where)) {
    steps.push_back(
        {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
  }
  steps.push_back(
      {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}});
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

// Puts the beginning-of-text token before every text, as the file says.
json post_processor_json(const std::string& token, int64_t id) {
  const json special = {{"SpecialToken", {{"id", token}, {"type_id", 0}}}};
  const auto sequence = [](const char* name, int type) -> json {
    return {{"Sequence", {{"id", name}, {"type_id", type}}}};
  };
  return {{"type", "TemplateProcessing"},
          {"single", {special, sequence("A", 0)}},
          {"pair", {special, sequence("A", 0), special, sequence("B", 1)}},
          {"special_tokens", {{token, {{"id", token}, {"ids", {id}}, {"tokens", {token}}}}}}};
}

void write_tokenizer(const GgufFile& file, const ModelSource& source, const std::string& folder) {
  const std::string pre = file.find_string("tokenizer.ggml.pre").value_or("");
  const std::vector<std::string> tokens = file.find_strings("tokenizer.ggml.tokens");
  const std::vector<int64_t> types = file.find_integers("tokenizer.ggml.token_type");
  const bool llama = pre.starts_with("llama");
  json vocabulary = json::object(), added = json::array();
  for (size_t i = 0; i < tokens.size(); ++i) {
    vocabulary[tokens[i]] = i;
    const int64_t type = types.empty() ? 1 : types[i];
    if (type != 3 && type != 4) continue;  // 3: control, 4: user-defined
    added.push_back({{"id", i},
                     {"content", tokens[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", type == 3}});
  }
  json root = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", pre == "qwen2" ? json{{"type", "NFC"}} : json()},
      {"pre_tokenizer", pre_tokenizer_json(pre, file.path())},
      {"post_processor", nullptr},
      {"decoder",
       {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", llama},
        {"vocab", vocabulary},
        {"merges", file.find_strings("tokenizer.ggml.merges")}}}};
  json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"model_max_length", source.config.max_positions},
                 {"clean_up_tokenization_spaces", false}};
  const auto bos = source.tokenizer->bos();
  const auto eos = source.tokenizer->eos();
  if (bos) config["bos_token"] = tokens.at(static_cast<size_t>(*bos));
  if (eos) config["eos_token"] = tokens.at(static_cast<size_t>(*eos));
  if (bos && file.find_bool("tokenizer.ggml.add_bos_token").value_or(llama))
    root["post_processor"] = post_processor_json(tokens.at(static_cast<size_t>(*bos)), *bos);
  if (!source.tokenizer->chat_template().empty()) config["chat_template"] = source.tokenizer->chat_template();
  json generation = {{"eos_token_id", source.end_tokens}};
  if (bos) generation["bos_token_id"] = *bos;
  write_atomically(folder + "/tokenizer.json", root.dump() + "\n");
  write_atomically(folder + "/tokenizer_config.json", config.dump(2) + "\n");
  write_atomically(folder + "/generation_config.json", generation.dump(2) + "\n");
}

std::string config_json(const ModelSource& source, const std::string& storage) {
  json config = json::parse(to_huggingface_json(source.config, source.end_tokens));
  config["torch_dtype"] = storage == "F32" ? "float32" : storage == "BF16" ? "bfloat16" : "float16";
  return config.dump(2) + "\n";
}

}  // namespace

void write_model_files(const std::string& folder, const ModelSource& source, const Parameters& parameters,
                       const std::string& storage, bool writer, Communicator& tensor_parallel) {
  const bool writes = writer && tensor_parallel.rank() == 0;
  std::unique_ptr<SafetensorsWriter> file;
  if (writes) {
    fs::create_directories(folder);
    std::vector<TensorToWrite> declared;
    for (const ShardedTensor& tensor : parameters.tensors())
      declared.push_back({tensor.name, tensor.shape, storage, nullptr});
    file = std::make_unique<SafetensorsWriter>(folder + "/model.safetensors", std::move(declared),
                                               std::map<std::string, std::string>{{"format", "pt"}});
  }
  for (const ShardedTensor& tensor : parameters.tensors()) {
    const std::vector<float> whole = gather_whole(tensor, tensor_parallel);
    if (file) file->add(whole.data());
  }
  if (!writes) return;
  file->close();
  if (const auto* gguf = dynamic_cast<const GgufFile*>(source.weights.get())) {
    write_tokenizer(*gguf, source, folder);
  } else {
    copy_tokenizer(source.path, folder);
  }
  write_atomically(folder + "/config.json", config_json(source, storage));
}

}  // namespace sl
