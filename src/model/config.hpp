// ModelConfig: the shape of a Llama or Qwen2 model, read from a Hugging Face config.json or from GGUF
// metadata.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.hpp"

namespace sl {

enum class Architecture : uint8_t { llama, qwen2 };

struct RopeScaling {
  enum class Kind : uint8_t { none, linear, llama3, yarn };
  Kind kind = Kind::none;
  double factor = 1.0;
  double low_frequency_factor = 1.0, high_frequency_factor = 4.0;  // llama3
  double original_positions = 0.0;                                 // llama3, yarn
  double beta_fast = 32.0, beta_slow = 1.0;                        // yarn
  bool whole_dimensions = true;   // yarn: the ramp begins and ends at whole dimensions ("truncate")
  double attention_factor = 0.0;  // yarn; 0: 0.1 ln(factor) + 1
  // GGUF files of Llama 3.1 carry the llama3 rule as divisors of the frequencies (rope_freqs.weight).
  std::vector<float> divisors;
};

struct ModelConfig {
  Architecture architecture = Architecture::llama;
  int64_t vocabulary = 0;
  int64_t hidden = 0;
  int64_t ffn = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t key_heads = 0;
  int64_t head_dim = 0;
  int64_t max_positions = 0;
  float rms_epsilon = 1e-5F;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool tied = false;      // the head is the embedding
  bool qkv_bias = false;  // Qwen2

  int64_t qkv_rows() const { return (heads + 2 * key_heads) * head_dim; }
  int64_t parameters() const;  // number of weights
  // Radians a position for each of head_dim / 2 pairs, scaling applied. Formulas: RoFormer; Llama 3.1's
  // release code; YaRN (Peng et al. 2023).
  std::vector<float> rope_frequencies() const;
  float rope_magnitude() const;  // YaRN's attention factor, else 1
};

// `folder`/config.json. InputError on an unknown architecture, missing or impossible numbers.
ModelConfig config_from_huggingface(const std::string& folder);
ModelConfig config_from_gguf(const GgufFile& file);

// Shapes for measurements with random weights: "qwen2-7b", "llama3.1-8b", "qwen2-1.5b", "smollm2-135m";
// InputError names them.
ModelConfig config_of_shape(std::string_view name);

// As config.json of the architecture, for export.
std::string to_huggingface_json(const ModelConfig& config, const std::vector<int32_t>& eos_tokens);

}  // namespace sl
