#include "model/config_rope.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.hpp"

namespace sl {
namespace {

constexpr double two_pi = 2.0 * std::numbers::pi;

// Low frequencies are divided by the factor, high ones kept, those between interpolated.
double llama3_frequency(double frequency, const RopeScaling& scaling) {
  const double turns = scaling.original_positions * frequency / two_pi;  // within the original length
  if (turns > scaling.high_frequency_factor) return frequency;
  if (turns < scaling.low_frequency_factor) return frequency / scaling.factor;
  const double smooth =
      (turns - scaling.low_frequency_factor) / (scaling.high_frequency_factor - scaling.low_frequency_factor);
  return (1.0 - smooth) * frequency / scaling.factor + smooth * frequency;
}

// YaRN: dimensions that turn often keep their frequency, those that turn seldom are interpolated, with a
// linear ramp between the dimensions that make beta_fast and beta_slow turns.
struct YarnRamp {
  YarnRamp(const RopeScaling& scaling, double theta, int64_t head_dim) {
    const auto dimension_of = [&](double turns) {
      return static_cast<double>(head_dim) * std::log(scaling.original_positions / (turns * two_pi)) /
             (2.0 * std::log(theta));
    };
    low = dimension_of(scaling.beta_fast);
    high = dimension_of(scaling.beta_slow);
    if (scaling.whole_dimensions) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, static_cast<double>(head_dim - 1));
    if (low == high) high += 0.001;
  }
  double interpolated_share(double dimension) const {
    return std::clamp((dimension - low) / (high - low), 0.0, 1.0);
  }
  double low, high;
};

}  // namespace

std::vector<float> ModelConfig::rope_frequencies() const {
  const int64_t pairs = head_dim / 2;
  std::vector<float> frequencies(static_cast<size_t>(pairs));
  const YarnRamp ramp(rope_scaling, rope_theta, head_dim);
  for (int64_t i = 0; i < pairs; ++i) {
    double frequency = std::pow(rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    switch (rope_scaling.kind) {
      case RopeScaling::Kind::none:
        break;
      case RopeScaling::Kind::linear:
        frequency /= rope_scaling.factor;
        break;
      case RopeScaling::Kind::llama3:
        frequency = llama3_frequency(frequency, rope_scaling);
        break;
      case RopeScaling::Kind::yarn: {
        const double share = ramp.interpolated_share(static_cast<double>(i));
        frequency = share * frequency / rope_scaling.factor + (1.0 - share) * frequency;
        break;
      }
    }
    if (!rope_scaling.divisors.empty()) frequency /= rope_scaling.divisors[static_cast<size_t>(i)];
    frequencies[static_cast<size_t>(i)] = static_cast<float>(frequency);
  }
  return frequencies;
}

float ModelConfig::rope_magnitude() const {
  if (rope_scaling.kind != RopeScaling::Kind::yarn) return 1.0F;
  if (rope_scaling.attention_factor > 0.0) return static_cast<float>(rope_scaling.attention_factor);
  return rope_scaling.factor <= 1.0 ? 1.0F : static_cast<float>(0.1 * std::log(rope_scaling.factor) + 1.0);
}

nlohmann::json scaling_as_llama3(const ModelConfig& config) {
  const std::vector<float>& divisors = config.rope_scaling.divisors;
  ModelConfig candidate = config;
  RopeScaling& scaling = candidate.rope_scaling;
  scaling = {.kind = RopeScaling::Kind::llama3, .divisors = {}};
  scaling.factor = *std::max_element(divisors.begin(), divisors.end());
  scaling.original_positions = 8192.0;
  // An interpolated frequency tells the original length: 1 / divisor = (1 - s) / factor + s.
  for (size_t i = 0; i < divisors.size(); ++i) {
    const double divisor = divisors[i];
    if (divisor <= 1.001 || divisor >= scaling.factor * 0.999) continue;
    const double smooth = (1.0 / divisor - 1.0 / scaling.factor) / (1.0 - 1.0 / scaling.factor);
    const double turns = smooth * (scaling.high_frequency_factor - scaling.low_frequency_factor) +
                         scaling.low_frequency_factor;
    const double frequency =
        std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim));
    scaling.original_positions = std::round(turns * two_pi / frequency);
    break;
  }
  const std::vector<float> expected = config.rope_frequencies();
  const std::vector<float> found = candidate.rope_frequencies();
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::abs(expected[i] - found[i]) > 1e-4F * expected[i]) {
      throw InputError("the RoPE divisors follow no llama3 rule and cannot be written to a config.json",
                       "export", "use the model's Hugging Face folder instead of the GGUF file");
    }
  }
  return {{"rope_type", "llama3"},
          {"factor", scaling.factor},
          {"low_freq_factor", scaling.low_frequency_factor},
          {"high_freq_factor", scaling.high_frequency_factor},
          {"original_max_position_embeddings", static_cast<int64_t>(scaling.original_positions)}};
}

}  // namespace sl
