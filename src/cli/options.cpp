#include "cli/options.hpp"

#include <fmt/format.h>

#include <limits>

#include "kernels/device.hpp"

namespace sl {
namespace {

// \n, \t and \\ as their characters.
std::string unescaped(const std::string& text, const std::string& where) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\') {
      out += text[i];
      continue;
    }
    const char next = i + 1 < text.size() ? text[++i] : '\0';
    if (next == 'n') {
      out += '\n';
    } else if (next == 't') {
      out += '\t';
    } else if (next == '\\') {
      out += '\\';
    } else {
      throw InputError("'" + text + "' has a backslash before something else than n, t or a backslash", where,
                       "write \\\\ for a backslash");
    }
  }
  return out;
}

}  // namespace

void add_model_options(CommandLine& line, ModelChoice& choice, bool with_adapter) {
  line.group("Model");
  line.add("model", choice.model, "Hugging Face folder, or .gguf file").value_name("PATH").required();
  if (with_adapter) line.add("adapter", choice.adapter, "LoRA adapter in PEFT's format").value_name("DIR");
  add_machine_options(line, choice);
}

void add_machine_options(CommandLine& line, ModelChoice& choice) {
  line.group("Machine");
  line.add_choice("device", choice.device,
                  {{"auto", DeviceChoice::automatic},
                   {"cpu", DeviceChoice::cpu},
                   {"cuda", DeviceChoice::cuda},
                   {"debug", DeviceChoice::debug}},
                  "where the model runs; debug: CPU with protected memory, to find our mistakes");
  line.add_choice(
      "storage", choice.storage,
      {{"auto", StorageChoice::automatic}, {"f32", StorageChoice::f32}, {"bf16", StorageChoice::bf16}},
      "what weights and activations are stored as; auto: bf16 on a GPU, f32 elsewhere");
  line.add("tp", choice.tp, "ranks that share one replica of the model (tensor parallelism)", at_least(1));
  line.add_choice(
      "collectives", choice.collectives,
      {{"auto", CollectivesChoice::automatic},
       {"nccl", CollectivesChoice::nccl},
       {"mpi", CollectivesChoice::mpi}},
      "how GPUs exchange numbers; auto: small sums through each other's memory, the rest by NCCL");
  line.add("threads", choice.threads,
           "threads of a rank; 0: OMP_NUM_THREADS, else the rank's share of the node's cores", at_least(0));
  line.add("deterministic", choice.deterministic,
           "results of a row do not depend on the rows computed with it, bit for bit");
  line.add_choice("log-level", choice.log_level,
                  {{"debug", "debug"}, {"info", "info"}, {"warn", "warn"}, {"error", "error"}},
                  "how much is said on standard error; debug lists the memory");
}

Device resolve_device(DeviceChoice choice) {
  switch (choice) {
    case DeviceChoice::debug:
      return Device::debug;
    case DeviceChoice::cpu:
      return Device::cpu;
    case DeviceChoice::cuda:
#if !SELFLENGTHEN_CUDA
      throw InputError("this build has no CUDA side", "--device",
                       "choose cpu, or build with the cuda preset");
#endif
      if (gpu_count() == 0)
        throw InputError("no GPU, or no driver for one, is found", "--device cuda", "choose cpu");
      return Device::cuda;
    case DeviceChoice::automatic:
      return gpu_count() > 0 ? Device::cuda : Device::cpu;
  }
  throw BugError("unknown device");
}

DeviceChoice on_host(DeviceChoice choice, std::string_view command) {
  if (choice == DeviceChoice::automatic) return DeviceChoice::cpu;
  if (choice == DeviceChoice::cuda) {
    throw InputError(fmt::format("`{}` works on CPU ranks only in this version", command), "--device cuda",
                     "choose cpu");
  }
  return choice;
}

DType resolve_storage(StorageChoice choice, Device device) {
  if (device == Device::cuda) return choice == StorageChoice::f32 ? DType::f32 : DType::bf16;
  if (choice == StorageChoice::bf16)
    throw InputError("bf16 needs a GPU", "--storage bf16", "choose f32, or --device cuda");
  return DType::f32;
}

void add_sampling_options(CommandLine& line, SamplingParameters& sampling) {
  line.group("Sampling");
  line.add("temperature", sampling.temperature, "0 takes the likeliest token (greedy)", at_least(0));
  line.add("top-p", sampling.top_p, "draw from the likeliest tokens that hold this share; 1: off",
           above_to(0, 1));
  line.add("top-k", sampling.top_k, "draw from so many likeliest tokens; 0: off", at_least(0));
  line.add("repetition-penalty", sampling.repetition_penalty, "over prompt and output tokens; 1: off",
           above(0));
  line.add("max-tokens", sampling.max_tokens, "new tokens, at most", at_least(1));
  line.add("min-tokens", sampling.min_tokens, "new tokens before an end may come", at_least(0));
  line.add("stop", sampling.stop,
           "text that ends a response and is not part of it; \\n and \\t are understood; "
           "given ones replace the defaults, an empty one means none",
           unescaped);
}

void add_beam_options(CommandLine& line, SamplingParameters& sampling) {
  line.group("Sampling");
  line.add("beams", sampling.beams,
           "above 1: the best of a beam search over so many, without chance; temperature, top-p and top-k do "
           "not matter then",
           at_least(1));
  line.add(
      "length-penalty", sampling.length_penalty,
      "a beam search wants the largest log-probability / tokens^penalty: above 0 favours long responses, "
      "below 0 short ones");
}

void add_engine_options(CommandLine& line, EngineChoice& choice) {
  line.group("Rollout engine");
  line.add("kv-memory", choice.kv_memory,
           "MiB for keys and values on a rank; 0: 1024, on a GPU all that is free", at_least(0));
  line.add("page-tokens", choice.page_tokens,
           "tokens of a page of keys and values; 0: 16, on a GPU 64 (there a multiple of 16)", at_least(0));
  line.add("max-sequences", choice.max_sequences, "sequences computed at the same time; 0: 64, on a GPU 256",
           at_least(0));
  line.add("max-batch-rows", choice.max_batch_rows,
           "tokens of one step, prompts included; 0: 256, on a GPU 2048", at_least(0));
}

EngineChoice resolve_engine(EngineChoice choice, Device device) {
  const bool gpu = device == Device::cuda;
  const auto settle = [](int64_t& value, int64_t automatic) { value = value == 0 ? automatic : value; };
  settle(choice.kv_memory, gpu ? 0 : 1024);
  settle(choice.page_tokens, gpu ? 64 : 16);
  settle(choice.max_sequences, gpu ? 256 : 64);
  settle(choice.max_batch_rows, gpu ? 2048 : 256);
  if (gpu && choice.page_tokens % 16 != 0) {
    throw InputError(fmt::format("pages of {} tokens are not a multiple of 16", choice.page_tokens),
                     "--page-tokens", "choose 64, which suits a GPU");
  }
  return choice;
}

void add_training_options(CommandLine& line, TrainingOptions& training, TrainingChoice& choice) {
  line.group("Training");
  line.add_choice("finetune", training.finetune, {{"lora", Finetune::lora}, {"full", Finetune::full}},
                  "an adapter, or all weights");
  line.add("lora-rank", training.lora.rank, "rank of the adapter", at_least(1));
  line.add("lora-alpha", training.lora.alpha, "its scale is alpha / rank", above(0));
  line.add("epochs", training.epochs, "passes over the data", at_least(1));
  line.add("learning-rate", training.learning_rate, "at its peak", above(0));
  line.add("warmup-ratio", training.warmup_ratio, "share of the steps in which the rate rises; then cosine",
           between(0, 1));
  line.add("weight-decay", training.weight_decay, "AdamW's", at_least(0));
  line.add("max-grad-norm", training.max_grad_norm, "larger gradients are scaled down to it; 0: never",
           at_least(0));
  line.add("cutoff", training.cutoff, "tokens of a sequence that are used", at_least(2));
  line.add("batch-sequences", training.batch_sequences, "sequences of a step, all replicas; 0: one a replica",
           at_least(0));
  line.add("pass-tokens", training.pass_tokens,
           "sequences are packed into passes of so many tokens; 0: as the longest", at_least(0));
  line.add_choice(
      "recompute", training.recompute,
      {{"auto", Recompute::automatic}, {"all", Recompute::all}, {"none", Recompute::none}},
      "which layers compute their activations a second time instead of keeping them; auto: as memory needs");
  line.add("activation-memory", choice.activation_memory,
           "MiB for activations on a rank; 0: no limit, on a GPU what is free", at_least(0));
  line.add("checkpoint-every", training.checkpoint_every, "steps; 0: only at the end", at_least(0));
}

void apply(const TrainingChoice& choice, TrainingOptions& training) {
  training.activation_bytes = choice.activation_memory << 20;
}

void add_stall_option(CommandLine& line, double& timeout) {
  line.add("stall-timeout", timeout,
           "seconds; a rank that does nothing for so long while others wait ends the job with exit code 1; "
           "0: never",
           at_least(0));
}

void add_table_options(CommandLine& line, TableLayout& layout) {
  line.add("table-chunk", layout.chunk_kib, "KiB of a chunk of an HDF5 dataset", between(4, 1 << 20));
  line.add(
      "table-alignment", layout.alignment_kib,
      "KiB; chunks of more than half as much begin at multiples of it, as the stripes of a parallel file "
      "system do; 0: no gaps",
      between(0, 1 << 20));
}

void add_file_options(CommandLine& line, FileChoice& files, const std::string& input_rows,
                      const std::string& output_rows) {
  line.group("Files (JSON lines)");
  line.add("input", files.input, input_rows).value_name("FILE").required();
  line.add("output", files.output, output_rows + "; - is standard output").value_name("FILE").required();
}

}  // namespace sl
