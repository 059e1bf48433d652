// Configuration files: one of `name = value` lines for --config, read with the options that commands share;
// then a model's config.json.
#include "cli/options.hpp"
#include "fuzz.hpp"
#include "model/config.hpp"

namespace sl {
namespace {

struct Options {
  ModelChoice model;
  SamplingParameters sampling;
  EngineChoice engine;
  TrainingOptions training;
  TrainingChoice training_choice;
  FileChoice files;
  double stall_timeout = default_stall_timeout;
  uint64_t seed = 0;
};

void read_config(const std::string& path) {
  Options options;
  CommandLine line("fuzz", "All options that commands share.");
  add_model_options(line, options.model);
  add_sampling_options(line, options.sampling);
  add_engine_options(line, options.engine);
  add_training_options(line, options.training, options.training_choice);
  add_stall_option(line, options.stall_timeout);
  add_file_options(line, options.files, "rows", "rows");
  line.add("seed", options.seed, "of all draws");
  line.parse({"--config", path, "--model", "m", "--input", "i", "--output", "o"});
  apply(options.training_choice, options.training);
  const nlohmann::json shown = line.resolved();
  // What run.json shows is what was given: no number became null.
  for (const auto& [name, value] : shown.items()) require(!value.is_null(), "no value of " + name);
  (void)shown.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace
}  // namespace sl

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sl;
  const auto parts = fuzz::parts_of(fuzz::text_of(data, size));
  const std::string path = fuzz::put("run.cfg", parts[0]);
  fuzz::accepted([&] { read_config(path); });
  if (parts.size() < 2) return 0;
  fuzz::put("config.json", parts[1]);
  fuzz::accepted([&] {
    const ModelConfig config = config_from_huggingface(fuzz::folder());
    if (config.head_dim <= 1024) (void)config.rope_frequencies();
    (void)to_huggingface_json(config, {1, 2});
  });
  return 0;
}
