// The groups of options that several commands share.
#pragma once

#include <cstdint>
#include <string>

#include "cli/command_line.hpp"
#include "core/tensor.hpp"
#include "io/table_layout.hpp"
#include "rollout/request.hpp"
#include "train/trainer.hpp"

namespace sl {

enum class DeviceChoice : uint8_t { automatic, cpu, cuda, debug };
enum class StorageChoice : uint8_t { automatic, f32, bf16 };
enum class CollectivesChoice : uint8_t { automatic, nccl, mpi };

// Which model, and how it runs.
struct ModelChoice {
  std::string model;    // Hugging Face folder or .gguf file
  std::string adapter;  // folder in PEFT's format; empty: none
  DeviceChoice device = DeviceChoice::automatic;
  StorageChoice storage = StorageChoice::automatic;
  int tp = 1;  // ranks that share one replica of the model
  CollectivesChoice collectives = CollectivesChoice::automatic;
  int threads = 0;  // of a rank; 0: its share of the node's cores
  bool deterministic = false;
  std::string log_level = "info";
};
void add_model_options(CommandLine& line, ModelChoice& choice, bool with_adapter = true);
// Those of them that say on what machine and how, not which model.
void add_machine_options(CommandLine& line, ModelChoice& choice);
// InputError when this build or machine has no such device. automatic: a GPU where there is one.
Device resolve_device(DeviceChoice choice);
// For commands that run on CPU ranks only: automatic is the CPU; InputError for a GPU.
DeviceChoice on_host(DeviceChoice choice, std::string_view command);
// What weights, activations and pages are stored as. InputError when the device does not have it.
DType resolve_storage(StorageChoice choice, Device device);

void add_sampling_options(CommandLine& line, SamplingParameters& sampling);
void add_beam_options(CommandLine& line, SamplingParameters& sampling);

// What the rollout engine may hold, as the user says it. 0: by the device.
struct EngineChoice {
  int64_t kv_memory = 0;  // MiB of keys and values on a rank; still 0 on a GPU: what is free
  int64_t page_tokens = 0;
  int64_t max_sequences = 0;
  int64_t max_batch_rows = 0;
};
void add_engine_options(CommandLine& line, EngineChoice& choice);
EngineChoice resolve_engine(EngineChoice choice, Device device);

// The activations' limit is said in MiB on the command line; 0: no limit.
struct TrainingChoice {
  int64_t activation_memory = 0;
};
void add_training_options(CommandLine& line, TrainingOptions& training, TrainingChoice& choice);
// After parse(): what the choice says goes into the options.
void apply(const TrainingChoice& choice, TrainingOptions& training);

// Seconds without progress after which a rank counts as stalled and the job ends; 0: never.
constexpr double default_stall_timeout = 1800.0;
void add_stall_option(CommandLine& line, double& timeout);

void add_table_options(CommandLine& line, TableLayout& layout);

// --input and --output of JSON lines, both required; "-" as output is standard output.
struct FileChoice {
  std::string input, output;
};
void add_file_options(CommandLine& line, FileChoice& files, const std::string& input_rows,
                      const std::string& output_rows);

}  // namespace sl
