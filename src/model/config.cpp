#include "model/config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numbers>

#include "core/error.hpp"
#include "core/json_depth.hpp"
#include "model/config_rope.hpp"

namespace sl {
namespace {

using nlohmann::json;

json read_json_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    throw InputError("cannot be opened", path, "give the folder of a Hugging Face model (or a .gguf file)");
  }
  const std::string text(std::istreambuf_iterator<char>(file), {});
  json content = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!content.is_object() || nests_too_deep(text))
    throw InputError("is not a JSON object", path, "download the model again");
  return content;
}

double number_or(const json& object, const char* key, double fallback, const std::string& where) {
  if (!object.contains(key) || object[key].is_null()) return fallback;
  if (!object[key].is_number()) {
    throw InputError(fmt::format("'{}' is not a number", key), where, "correct the file");
  }
  return object[key].get<double>();
}

int64_t positive_integer(const json& object, const char* key, const std::string& where) {
  if (!object.contains(key) || !object[key].is_number_integer() || object[key].get<int64_t>() <= 0) {
    throw InputError(fmt::format("'{}' is missing or not a positive integer", key), where,
                     "correct the file or download the model again");
  }
  return object[key].get<int64_t>();
}

bool flag_or(const json& object, const char* key, bool fallback) {
  return object.contains(key) && object[key].is_boolean() ? object[key].get<bool>() : fallback;
}

RopeScaling scaling_from_json(const json& rope, const ModelConfig& config, const std::string& where) {
  RopeScaling scaling;
  std::string kind = "default";
  for (const char* key : {"rope_type", "type"}) {
    if (rope.contains(key) && rope[key].is_string()) {
      kind = rope[key];
      break;
    }
  }
  if (kind == "default") {
    if (rope.contains("factor"))
      throw InputError("RoPE scaling has a factor and no rope_type", where, "add the type, or remove it");
    return scaling;
  }
  if (kind == "linear") {
    scaling.kind = RopeScaling::Kind::linear;
  } else if (kind == "llama3") {
    scaling.kind = RopeScaling::Kind::llama3;
  } else if (kind == "yarn") {
    scaling.kind = RopeScaling::Kind::yarn;
  } else {
    throw InputError(fmt::format("RoPE scaling '{}' is unknown", kind), where,
                     "use a model with default, linear, llama3 or yarn scaling");
  }
  std::vector<const char*> needed = {"factor"};
  if (scaling.kind == RopeScaling::Kind::llama3)
    needed = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"};
  for (const char* key : needed) {
    if (!rope.contains(key) || rope[key].is_null())
      throw InputError(fmt::format("RoPE scaling '{}' has no '{}'", kind, key), where,
                       "download the model again");
  }
  scaling.factor = number_or(rope, "factor", 1.0, where);
  scaling.low_frequency_factor = number_or(rope, "low_freq_factor", 1.0, where);
  scaling.high_frequency_factor = number_or(rope, "high_freq_factor", 4.0, where);
  scaling.original_positions =
      number_or(rope, "original_max_position_embeddings", static_cast<double>(config.max_positions), where);
  scaling.beta_fast = number_or(rope, "beta_fast", 32.0, where);
  scaling.beta_slow = number_or(rope, "beta_slow", 1.0, where);
  scaling.whole_dimensions = flag_or(rope, "truncate", true);
  scaling.attention_factor = number_or(rope, "attention_factor", 0.0, where);
  // The form of DeepSeek's configurations: a quotient of two such factors.
  const double numerator = number_or(rope, "mscale", 0.0, where);
  const double denominator = number_or(rope, "mscale_all_dim", 0.0, where);
  if (scaling.kind == RopeScaling::Kind::yarn && scaling.attention_factor == 0.0 && numerator != 0.0 &&
      denominator != 0.0 && scaling.factor > 1.0) {
    const double growth = 0.1 * std::log(scaling.factor);
    scaling.attention_factor = (growth * numerator + 1.0) / (growth * denominator + 1.0);
  }
  return scaling;
}

// What both file formats must satisfy.
void check(const ModelConfig& config, const std::string& where) {
  const auto refuse = [&](const std::string& what) {
    throw InputError(what, where, "correct the file or download the model again");
  };
  for (int64_t size : {config.vocabulary, config.hidden, config.ffn, config.layers, config.heads,
                       config.key_heads, config.head_dim, config.max_positions}) {
    if (size <= 0 || size > (int64_t{1} << 31)) refuse("a size of the model is not between 1 and 2^31");
  }
  if (config.heads % config.key_heads != 0) {
    refuse(fmt::format("{} query heads are not a multiple of {} key-value heads", config.heads,
                       config.key_heads));
  }
  if (config.head_dim % 2 != 0) refuse(fmt::format("head dimension {} is odd", config.head_dim));
  // Numbers of GGUF files may be infinite or not numbers, and those of JSON too large for a float.
  if (!(config.rope_theta > 0.0 && std::isfinite(config.rope_theta))) refuse("the RoPE base is not positive");
  if (!(config.rms_epsilon >= 0.0F && std::isfinite(config.rms_epsilon)))
    refuse("the RMS norm's epsilon is negative or too large");
  const RopeScaling& scaling = config.rope_scaling;
  constexpr double longest = 1e15;  // exact as a whole number
  if (!(scaling.factor > 0.0 && scaling.factor < longest && scaling.original_positions >= 0.0 &&
        scaling.original_positions < longest)) {
    refuse("RoPE scaling has a factor or length that is not positive, or too large");
  }
  if (scaling.kind != RopeScaling::Kind::none && scaling.original_positions < 1.0)
    refuse("RoPE scaling has a length that is not positive");
}

}  // namespace

ModelConfig config_from_huggingface(const std::string& folder) {
  const std::string path = folder + "/config.json";
  const json content = read_json_file(path);
  std::string name;
  if (content.contains("architectures") && content["architectures"].is_array() &&
      !content["architectures"].empty() && content["architectures"][0].is_string()) {
    name = content["architectures"][0];
  }
  ModelConfig config;
  if (name == "LlamaForCausalLM") {
    config.architecture = Architecture::llama;
    for (const char* key : {"attention_bias", "mlp_bias"}) {
      if (flag_or(content, key, false)) {
        throw InputError(fmt::format("'{}' is true, which the Llama models of this program do not have", key),
                         path, "use a model without these biases");
      }
    }
  } else if (name == "Qwen2ForCausalLM") {
    config.architecture = Architecture::qwen2;
    config.qkv_bias = true;
    if (flag_or(content, "use_sliding_window", false)) {
      throw InputError("sliding-window attention is not supported", path, "set use_sliding_window to false");
    }
  } else {
    throw InputError(fmt::format("architecture '{}' is unknown", name), path,
                     "use a model of LlamaForCausalLM or Qwen2ForCausalLM");
  }
  if (content.contains("hidden_act") && content["hidden_act"] != "silu") {
    throw InputError("activation " + content["hidden_act"].dump() + " is unknown", path,
                     "use a model with the silu activation");
  }
  config.vocabulary = positive_integer(content, "vocab_size", path);
  config.hidden = positive_integer(content, "hidden_size", path);
  config.ffn = positive_integer(content, "intermediate_size", path);
  config.layers = positive_integer(content, "num_hidden_layers", path);
  config.heads = positive_integer(content, "num_attention_heads", path);
  config.key_heads = content.contains("num_key_value_heads") && !content["num_key_value_heads"].is_null()
                         ? positive_integer(content, "num_key_value_heads", path)
                         : config.heads;
  config.head_dim = content.contains("head_dim") && !content["head_dim"].is_null()
                        ? positive_integer(content, "head_dim", path)
                        : config.hidden / config.heads;
  config.max_positions = positive_integer(content, "max_position_embeddings", path);
  config.rms_epsilon = static_cast<float>(number_or(content, "rms_norm_eps", 1e-6, path));
  config.tied = flag_or(content, "tie_word_embeddings", false);
  // Transformers 5 writes rope_parameters (base and scaling in one); older ones rope_theta and rope_scaling.
  json rope = json::object();
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!content.contains(key) || content[key].is_null()) continue;
    if (!content[key].is_object())
      throw InputError(fmt::format("'{}' is no object", key), path, "correct the file");
    rope = content[key];
  }
  config.rope_theta = number_or(rope, "rope_theta", number_or(content, "rope_theta", 10000.0, path), path);
  config.rope_scaling = scaling_from_json(rope, config, path);
  check(config, path);
  return config;
}

ModelConfig config_from_gguf(const GgufFile& file) {
  const std::string name = file.find_string("general.architecture").value_or("");
  ModelConfig config;
  if (name == "llama") {
    config.architecture = Architecture::llama;
  } else if (name == "qwen2") {
    config.architecture = Architecture::qwen2;
    config.qkv_bias = true;
  } else {
    throw InputError(fmt::format("architecture '{}' is unknown", name), file.path(),
                     "use a GGUF file of architecture llama or qwen2");
  }
  const auto integer = [&](const std::string& key) {
    const std::optional<int64_t> value = file.find_integer(name + "." + key);
    if (!value || *value <= 0) {
      throw InputError(fmt::format("metadata '{}.{}' is missing or not positive", name, key), file.path(),
                       "convert or download the model again");
    }
    return *value;
  };
  config.hidden = integer("embedding_length");
  config.layers = integer("block_count");
  config.ffn = integer("feed_forward_length");
  config.heads = integer("attention.head_count");
  config.key_heads = file.find_integer(name + ".attention.head_count_kv").value_or(config.heads);
  config.head_dim = file.find_integer(name + ".attention.key_length")
                        .value_or(file.find_integer(name + ".rope.dimension_count")
                                      .value_or(config.hidden / std::max<int64_t>(config.heads, 1)));
  config.max_positions = integer("context_length");
  config.rms_epsilon =
      static_cast<float>(file.find_float(name + ".attention.layer_norm_rms_epsilon").value_or(1e-5));
  config.rope_theta = file.find_float(name + ".rope.freq_base").value_or(10000.0);
  const WeightInfo* embedding = file.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    throw InputError("tensor 'token_embd.weight' is missing or no matrix", file.path(),
                     "convert or download the model again");
  }
  config.vocabulary = embedding->shape[0];
  config.tied = file.find("output.weight") == nullptr;

  RopeScaling& scaling = config.rope_scaling;
  const std::string kind = file.find_string(name + ".rope.scaling.type").value_or("none");
  scaling.factor = file.find_float(name + ".rope.scaling.factor").value_or(1.0);
  scaling.original_positions = static_cast<double>(
      file.find_integer(name + ".rope.scaling.original_context_length").value_or(config.max_positions));
  if (kind == "yarn") {
    scaling.kind = RopeScaling::Kind::yarn;
  } else if (kind == "linear") {
    scaling.kind = RopeScaling::Kind::linear;
  } else if (kind != "none") {
    throw InputError(fmt::format("RoPE scaling '{}' is unknown", kind), file.path(),
                     "use a model with no, linear or yarn scaling");
  }
  if (const WeightInfo* divisors = file.find("rope_freqs.weight"); divisors != nullptr) {
    if (divisors->shape != std::vector<int64_t>{config.head_dim / 2}) {
      throw InputError("tensor 'rope_freqs.weight' does not have head_dim / 2 numbers", file.path(),
                       "convert or download the model again");
    }
    scaling.divisors.resize(static_cast<size_t>(config.head_dim / 2));
    file.read("rope_freqs.weight", {0, 1, 0, config.head_dim / 2}, scaling.divisors.data());
  }
  check(config, file.path());
  return config;
}

int64_t ModelConfig::parameters() const {
  const int64_t block =
      2 * hidden + qkv_rows() * (hidden + (qkv_bias ? 1 : 0)) + heads * head_dim * hidden + 3 * hidden * ffn;
  return layers * block + hidden + vocabulary * hidden * (tied ? 1 : 2);
}

ModelConfig config_of_shape(std::string_view name) {
  ModelConfig config;
  if (name == "qwen2-7b") {
    config = {.architecture = Architecture::qwen2,
              .vocabulary = 152064,
              .hidden = 3584,
              .ffn = 18944,
              .layers = 28,
              .heads = 28,
              .key_heads = 4,
              .head_dim = 128,
              .max_positions = 32768,
              .rms_epsilon = 1e-6F,
              .rope_theta = 1e6,
              .rope_scaling = {},
              .tied = false,
              .qkv_bias = true};
  } else if (name == "llama3.1-8b") {
    config = {.architecture = Architecture::llama,
              .vocabulary = 128256,
              .hidden = 4096,
              .ffn = 14336,
              .layers = 32,
              .heads = 32,
              .key_heads = 8,
              .head_dim = 128,
              .max_positions = 131072,
              .rms_epsilon = 1e-5F,
              .rope_theta = 5e5,
              .rope_scaling = {},
              .tied = false,
              .qkv_bias = false};
    config.rope_scaling.kind = RopeScaling::Kind::llama3;
    config.rope_scaling.factor = 8.0;
    config.rope_scaling.original_positions = 8192.0;
  } else if (name == "qwen2-1.5b") {
    config = {.architecture = Architecture::qwen2,
              .vocabulary = 151936,
              .hidden = 1536,
              .ffn = 8960,
              .layers = 28,
              .heads = 12,
              .key_heads = 2,
              .head_dim = 128,
              .max_positions = 32768,
              .rms_epsilon = 1e-6F,
              .rope_theta = 1e6,
              .rope_scaling = {},
              .tied = true,
              .qkv_bias = true};
  } else if (name == "smollm2-135m") {
    config = {.architecture = Architecture::llama,
              .vocabulary = 49152,
              .hidden = 576,
              .ffn = 1536,
              .layers = 30,
              .heads = 9,
              .key_heads = 3,
              .head_dim = 64,
              .max_positions = 8192,
              .rms_epsilon = 1e-5F,
              .rope_theta = 1e5,
              .rope_scaling = {},
              .tied = true,
              .qkv_bias = false};
  } else {
    throw InputError(fmt::format("shape '{}' is unknown", name), "--shape",
                     "use qwen2-7b, llama3.1-8b, qwen2-1.5b or smollm2-135m");
  }
  return config;
}

std::string to_huggingface_json(const ModelConfig& config, const std::vector<int32_t>& eos_tokens) {
  const bool qwen2 = config.architecture == Architecture::qwen2;
  json content = {
      {"architectures", {qwen2 ? "Qwen2ForCausalLM" : "LlamaForCausalLM"}},
      {"model_type", qwen2 ? "qwen2" : "llama"},
      {"vocab_size", config.vocabulary},
      {"hidden_size", config.hidden},
      {"intermediate_size", config.ffn},
      {"num_hidden_layers", config.layers},
      {"num_attention_heads", config.heads},
      {"num_key_value_heads", config.key_heads},
      {"head_dim", config.head_dim},
      {"max_position_embeddings", config.max_positions},
      {"rms_norm_eps", config.rms_epsilon},
      {"rope_theta", config.rope_theta},
      {"tie_word_embeddings", config.tied},
      {"hidden_act", "silu"},
      {"torch_dtype", "float32"},
      {"use_cache", true},
  };
  if (!eos_tokens.empty()) content["eos_token_id"] = eos_tokens;
  if (!qwen2) {
    content["attention_bias"] = false;
    content["mlp_bias"] = false;
  }
  const RopeScaling& scaling = config.rope_scaling;
  if (!scaling.divisors.empty()) {
    content["rope_scaling"] = scaling_as_llama3(config);
  } else if (scaling.kind == RopeScaling::Kind::linear) {
    content["rope_scaling"] = {{"rope_type", "linear"}, {"factor", scaling.factor}};
  } else if (scaling.kind == RopeScaling::Kind::llama3) {
    content["rope_scaling"] = {
        {"rope_type", "llama3"},
        {"factor", scaling.factor},
        {"low_freq_factor", scaling.low_frequency_factor},
        {"high_freq_factor", scaling.high_frequency_factor},
        {"original_max_position_embeddings", static_cast<int64_t>(scaling.original_positions)}};
  } else if (scaling.kind == RopeScaling::Kind::yarn) {
    content["rope_scaling"] = {
        {"rope_type", "yarn"},
        {"factor", scaling.factor},
        {"beta_fast", scaling.beta_fast},
        {"beta_slow", scaling.beta_slow},
        {"truncate", scaling.whole_dimensions},
        {"attention_factor", config.rope_magnitude()},
        {"original_max_position_embeddings", static_cast<int64_t>(scaling.original_positions)}};
  }
  return content.dump(2) + "\n";
}

}  // namespace sl
