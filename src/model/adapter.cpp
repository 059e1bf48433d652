#include "model/adapter.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/rng.hpp"
#include "io/checksum.hpp"
#include "io/durable.hpp"
#include "io/safetensors.hpp"
#include "kernels/ops.hpp"

namespace sl {
namespace {

using Axis = ShardedTensor::Axis;
using nlohmann::json;

// Sizes of one projection, whole and here.
struct Dimensions {
  int64_t in_whole, out_whole;
  Range in, out;  // held here
  bool by_rows;   // column-parallel layer: the weight's rows are split
  int copies = 1;
};

Dimensions dimensions_of(const ModelConfig& config, const Shard& shard, Projection projection) {
  const int64_t dim = config.head_dim;
  const Range all_hidden = {0, config.hidden};
  const Range queries = {shard.query_heads.begin * dim, shard.query_heads.end * dim};
  const Range keys = {shard.key_heads.begin * dim, shard.key_heads.end * dim};
  switch (projection) {
    case Projection::q:
      return {config.hidden, config.heads * dim, all_hidden, queries, true};
    case Projection::k:
    case Projection::v:
      return {config.hidden, config.key_heads * dim, all_hidden, keys, true, shard.key_head_copies};
    case Projection::o:
      return {config.heads * dim, config.hidden, queries, all_hidden, false};
    case Projection::gate:
    case Projection::up:
      return {config.hidden, config.ffn, all_hidden, shard.ffn, true};
    case Projection::down:
      return {config.ffn, config.hidden, shard.ffn, all_hidden, false};
  }
  throw BugError("unknown projection");
}

json read_adapter_config(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw InputError("cannot be opened", path, "give the folder of a PEFT adapter");
  json content = json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!content.is_object() || content["peft_type"] != "LORA") {
    throw InputError("is not the configuration of a LoRA adapter", path, "give a PEFT adapter of type LORA");
  }
  if (content.contains("use_dora") && content["use_dora"] == true)
    throw InputError("'use_dora' is true, which is not supported", path, "use a plain LoRA adapter");
  for (const char* key : {"rank_pattern", "alpha_pattern"}) {
    if (content.contains(key) && content[key].is_object() && !content[key].empty()) {
      throw InputError(fmt::format("'{}' gives modules different ranks, which is not supported", key), path,
                       "use an adapter of one rank");
    }
  }
  if (!content.contains("r") || !content["r"].is_number_integer() || content["r"].get<int64_t>() <= 0 ||
      !content.contains("lora_alpha") || !content["lora_alpha"].is_number()) {
    throw InputError("'r' or 'lora_alpha' is missing or no positive number", path, "correct the file");
  }
  return content;
}

}  // namespace

std::string_view module_name(Projection projection) {
  switch (projection) {
    case Projection::q:
      return "self_attn.q_proj";
    case Projection::k:
      return "self_attn.k_proj";
    case Projection::v:
      return "self_attn.v_proj";
    case Projection::o:
      return "self_attn.o_proj";
    case Projection::gate:
      return "mlp.gate_proj";
    case Projection::up:
      return "mlp.up_proj";
    case Projection::down:
      return "mlp.down_proj";
  }
  throw BugError("unknown projection");
}

Adapter::Adapter(const ModelConfig& config, const Shard& shard, LoraShape shape, Placement place,
                 const std::string& name)
    : shape_(shape), layers_(static_cast<size_t>(config.layers)) {
  constexpr std::array groups = {qkv_group, output_group, gate_up_group, down_group};
  const auto a_shape = [&](ProjectionGroup group) -> std::array<int64_t, 2> {
    return {static_cast<int64_t>(group.size()) * shape.rank,
            dimensions_of(config, shard, group.front()).in.size()};
  };
  const auto b_shape = [&](Projection projection) -> std::array<int64_t, 2> {
    return {dimensions_of(config, shard, projection).out.size(), shape.rank};
  };
  int64_t bytes = 0;
  for (const ProjectionGroup group : groups) {
    bytes += Arena::bytes_for_any_dtype(place.dtype, {a_shape(group)[0], a_shape(group)[1]});
    for (const Projection projection : group)
      bytes += Arena::bytes_for_any_dtype(place.dtype, {b_shape(projection)[0], b_shape(projection)[1]});
  }
  buffer_ = Buffer(place.device, bytes * config.layers, name);
  char* next = static_cast<char*>(buffer_.data());
  const auto next_tensor = [&](const std::array<int64_t, 2>& size) {
    Tensor tensor(next, place.dtype, place.device, {size[0], size[1]});
    next += Arena::bytes_for_any_dtype(place.dtype, {size[0], size[1]});
    return tensor;
  };
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    std::array<LoraPair, 7>& pairs = layers_[static_cast<size_t>(layer)];
    for (const ProjectionGroup group : groups) {
      const Tensor stacked = next_tensor(a_shape(group));
      for (size_t i = 0; i < group.size(); ++i) {
        const auto begin = static_cast<int64_t>(i) * shape.rank;
        LoraPair& pair = pairs[static_cast<size_t>(group[i])];
        pair.a = stacked.rows(begin, begin + shape.rank);
        pair.b = next_tensor(b_shape(group[i]));
      }
    }
    for (const Projection projection : all_projections) {
      const Dimensions d = dimensions_of(config, shard, projection);
      const LoraPair& pair = pairs[static_cast<size_t>(projection)];
      const std::string module =
          fmt::format("base_model.model.model.layers.{}.{}", layer, module_name(projection));
      tensors_.push_back({module + ".lora_A.weight",
                          {shape.rank, d.in_whole},
                          d.by_rows ? Axis::replicated : Axis::columns,
                          d.in,
                          1,
                          pair.a});
      tensors_.push_back({module + ".lora_B.weight",
                          {d.out_whole, shape.rank},
                          d.by_rows ? Axis::rows : Axis::replicated,
                          d.out,
                          d.copies,
                          pair.b});
    }
  }
}

Tensor Adapter::stacked_a(int64_t layer, ProjectionGroup group) const {
  const Tensor first = pair(layer, group.front()).a;
  return {first.raw(),
          first.dtype(),
          first.device(),
          {static_cast<int64_t>(group.size()) * first.rows(), first.columns()}};
}

const LoraPair& Adapter::pair(int64_t layer, Projection projection) const {
  require(layer >= 0 && layer < static_cast<int64_t>(layers_.size()), "adapter has no such layer");
  return layers_[static_cast<size_t>(layer)][static_cast<size_t>(projection)];
}

Tensor Adapter::flat() const {
  const DType dtype = tensors_.front().local.dtype();
  return {buffer_.data(), dtype, buffer_.device(), {buffer_.bytes() / size_of(dtype)}};
}

void initialise(Adapter& adapter, uint64_t seed) {
  int64_t index = 0;
  for (const ShardedTensor& tensor : adapter.tensors()) {
    Random random({.seed = seed, .sample = index++});
    std::vector<float> whole(static_cast<size_t>(tensor.shape[0] * tensor.shape[1]), 0.0F);
    if (tensor.name.ends_with("lora_A.weight")) {
      const double bound = 1.0 / std::sqrt(static_cast<double>(tensor.shape[1]));
      for (float& value : whole) value = static_cast<float>(bound * (2.0 * random.uniform() - 1.0));
    }
    scatter_whole(tensor, whole);
  }
}

LoraShape read_lora_shape(const std::string& folder) {
  const json content = read_adapter_config(folder + "/adapter_config.json");
  const auto rank = content["r"].get<int64_t>();
  auto alpha = content["lora_alpha"].get<float>();
  // Rank-stabilized LoRA scales by alpha / sqrt(rank): as plain LoRA does with a larger alpha.
  if (content.contains("use_rslora") && content["use_rslora"] == true)
    alpha *= std::sqrt(static_cast<float>(rank));
  return {rank, alpha};
}

Adapter load_adapter(const std::string& folder, const ModelConfig& config, const Shard& shard,
                     Placement place) {
  const LoraShape shape = read_lora_shape(folder);
  Adapter adapter(config, shard, shape, place, "adapter");
  const std::string path = folder + "/adapter_model.safetensors";
  const auto file = open_safetensors(path);
  size_t found = 0;
  for (const ShardedTensor& tensor : adapter.tensors()) {
    const WeightInfo* info = file->find(tensor.name);
    if (info == nullptr) continue;
    ++found;
    if (info->shape != tensor.shape) {
      throw InputError(fmt::format("tensor '{}' does not have the shape that this model and rank {} need",
                                   tensor.name, shape.rank),
                       path, "use an adapter that was trained on this model");
    }
    std::vector<float> whole(static_cast<size_t>(tensor.shape[0] * tensor.shape[1]));
    file->read(tensor.name, {0, tensor.shape[0], 0, tensor.shape[1]}, whole.data());
    if (!std::all_of(whole.begin(), whole.end(), [](float value) { return std::isfinite(value); }))
      throw InputError(fmt::format("tensor '{}' has NaN or infinity", tensor.name), path,
                       "use another adapter");
    scatter_whole(tensor, whole);
  }
  if (found != file->tensors().size()) {
    throw InputError(fmt::format("holds {} tensors, of which {} belong to this model's blocks",
                                 file->tensors().size(), found),
                     path, "use an adapter on q, k, v, o, gate, up and down of this model only");
  }
  return adapter;
}

void save_adapter(const Adapter& adapter, const std::string& folder, const std::string& base, bool writer,
                  Communicator& tensor_parallel) {
  std::vector<TensorToWrite> tensors;
  std::vector<std::vector<float>> values;
  values.reserve(adapter.tensors().size());  // the rows below point into it
  for (const ShardedTensor& tensor : adapter.tensors()) {
    values.push_back(gather_whole(tensor, tensor_parallel));
    tensors.push_back({tensor.name, tensor.shape, "F32", values.back().data()});
  }
  if (!writer || tensor_parallel.rank() != 0) return;
  std::filesystem::create_directories(folder);
  const json config = {
      {"peft_type", "LORA"},
      {"task_type", "CAUSAL_LM"},
      {"base_model_name_or_path", base},
      {"r", adapter.shape().rank},
      {"lora_alpha", adapter.shape().alpha},
      {"lora_dropout", 0.0},
      {"bias", "none"},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"target_modules", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}},
  };
  const std::string text = config.dump(2) + "\n";
  write_sealed_safetensors(folder + "/adapter_model.safetensors", tensors,
                           {{"format", "pt"}, {"part_crc32", checksum_digits(text)}});
  write_atomically(folder + "/adapter_config.json", text);
}

void check_saved_adapter(const std::string& folder) {
  const std::string config = folder + "/adapter_config.json";
  const auto text = read_if_there(config);
  if (!text) throw InputError("is missing", config, "give the folder of an adapter");
  (void)read_lora_shape(folder);
  check_sealed_safetensors(folder + "/adapter_model.safetensors", config, *text);
}

void merge(Parameters& parameters, const Adapter& adapter, float sign) {
  const Context context{parameters.embedding.device(), false};
  for (size_t i = 0; i < parameters.layers.size(); ++i) {
    const LayerWeights& layer = parameters.layers[i];
    const auto pair = [&](Projection projection) -> const LoraPair& {
      return adapter.pair(static_cast<int64_t>(i), projection);
    };
    const auto add = [&](const Tensor& weight, Projection projection) {
      run(context, Gemm{.a = pair(projection).b,
                        .b = pair(projection).a,
                        .out = weight,
                        .alpha = sign * adapter.shape().scale(),
                        .beta = 1.0F,
                        .bias = {}});
    };
    const int64_t q_end = pair(Projection::q).b.rows();
    const int64_t k_end = q_end + pair(Projection::k).b.rows();
    const int64_t ffn = pair(Projection::gate).b.rows();
    add(layer.qkv.rows(0, q_end), Projection::q);
    add(layer.qkv.rows(q_end, k_end), Projection::k);
    add(layer.qkv.rows(k_end, layer.qkv.rows()), Projection::v);
    add(layer.output, Projection::o);
    add(layer.gate_up.rows(0, ffn), Projection::gate);
    add(layer.gate_up.rows(ffn, 2 * ffn), Projection::up);
    add(layer.down, Projection::down);
  }
}

}  // namespace sl
