// What the measurements share: random weights of a named shape, and the ceilings of the machine, taken in the
// same run. Every measurement prints one JSON line.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/command_line.hpp"
#include "cli/commands.hpp"
#include "cli/launch.hpp"
#include "cli/options.hpp"
#include "model/adapter.hpp"
#include "model/config.hpp"
#include "model/transformer.hpp"

namespace sl {

struct BenchChoice {
  ModelChoice model;
  EngineChoice engine;
  std::string shape = "smollm2-135m";
  int64_t batch = 32;     // rows or sequences
  int64_t context = 512;  // tokens of a sequence
  int64_t repeats = 9;    // the median is reported
  int64_t adapters = 0;   // rows take turns with so many
  int64_t input_tokens = 200, output_tokens = 6000, count = 512;
  int64_t sequence = 0;  // tokens of each packed sequence; 0: all of the context
  Finetune finetune = Finetune::lora;
  Recompute recompute = Recompute::automatic;
  bool backward = false;
  double spread = 0.0;   // of the logarithm of the output's length
  double seconds = 0.0;  // of steady state; 0: a whole stage
};

// Seconds of a call on the device: the median of `repeats`, after one call to warm up.
double median_seconds(const Context& context, int64_t repeats, const std::function<void()>& call);

void fill_randomly(const Context& context, const Tensor& tensor, uint64_t seed);

struct Ceiling {
  double copy_bytes_per_second = 0.0;  // bytes read and written
  double flops_per_second = 0.0;       // of a large product of the storage dtype
  nlohmann::json to_json() const;
};
Ceiling measure_ceiling(const Context& context);
double copy_rate(const Context& context);  // bytes read and written a second

// Bytes that a step over `rows` sequences of `context` tokens must read on each of tp ranks: its weights
// once, keys and values.
double bytes_of_step(const ModelConfig& config, DType storage, int64_t rows, int64_t context, int tp);
// Arithmetic of a token without its attention: two operations a weight of the blocks.
double flops_of_token(const ModelConfig& config);

// The seconds of the slowest rank. Collective over all ranks.
double slowest(const Ranks& ranks, double seconds);
// The sum over replicas of what their leaders give. Collective over all ranks.
double sum_over_replicas(const Ranks& ranks, double value);

// A rank's share of a model of random weights, with as many random adapters as asked for.
class RandomModel {
 public:
  RandomModel(const Ranks& ranks, const ModelConfig& config, int64_t adapters = 0);
  RandomModel(const RandomModel&) = delete;
  RandomModel& operator=(const RandomModel&) = delete;
  const Transformer& transformer() const { return transformer_; }
  Parameters& weights() { return weights_; }
  std::vector<const Adapter*> adapters() const;

 private:
  ModelConfig config_;
  Shard shard_;
  Parameters weights_;
  Transformer transformer_;
  std::vector<Adapter> adapters_;
};

nlohmann::json head_of_line(const Ranks& ranks, const char* what, const BenchChoice& choice);

enum class BenchRanks : uint8_t { one, any };

// Parses, starts the ranks, measures on all of them, prints on the first. `options` adds those of the
// measurement.
int run_bench(const char* what, const char* summary, const char* example, const Arguments& arguments,
              const std::function<void(CommandLine&, BenchChoice&)>& options,
              nlohmann::json (*measure)(const Ranks&, const ModelConfig&, const BenchChoice&),
              BenchRanks allowed = BenchRanks::one);

}  // namespace sl
