#include "model/parameters.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/activity.hpp"
#include "core/error.hpp"
#include "core/rng.hpp"
#include "kernels/ops.hpp"

namespace sl {
namespace {

using Axis = ShardedTensor::Axis;

// Adds up the tensors first (sizes only), then views them: one Buffer holds all weights.
class Layouter {
 public:
  explicit Layouter(Placement place) : place_(place) {}
  // Pass 1 (base null) counts; pass 2 hands out views.
  Tensor place(std::initializer_list<int64_t> shape) {
    const int64_t offset = used_;
    used_ += Arena::bytes_for_any_dtype(place_.dtype, shape);
    return {base_ == nullptr ? nullptr : base_ + offset, place_.dtype, place_.device, shape};
  }
  int64_t used() const { return used_; }
  void begin(void* base) {
    base_ = static_cast<char*>(base);
    used_ = 0;
  }

 private:
  Placement place_;
  char* base_ = nullptr;
  int64_t used_ = 0;
};

// Between rows with room for `adapter_rank` columns behind them: such rows begin at multiples of 128 bytes,
// as products like them.
int64_t row_pitch(int64_t columns, int64_t adapter_rank) {
  return adapter_rank == 0 ? columns : (columns + adapter_rank + 63) / 64 * 64;
}

void place_all(Layouter& layouter, const ModelConfig& config, const Shard& shard, int64_t adapter_rank,
               Parameters& parameters) {
  const int64_t hidden = config.hidden;
  const int64_t q_rows = shard.query_heads.size() * config.head_dim;
  const int64_t qkv_rows = q_rows + 2 * shard.key_heads.size() * config.head_dim;
  const int64_t ffn = shard.ffn.size();
  const int64_t vocabulary = shard.vocabulary.size();
  parameters.embedding = layouter.place({vocabulary, hidden});
  parameters.head = config.tied ? parameters.embedding : layouter.place({vocabulary, hidden});
  parameters.final_norm = layouter.place({hidden});
  parameters.layers.resize(static_cast<size_t>(config.layers));
  for (LayerWeights& layer : parameters.layers) {
    LayerWeights::WithRoom& wide = layer.with_room;
    const auto place_with_both = [&](int64_t columns, Tensor& weight, Tensor& with_rows,
                                     Tensor& with_columns) {
      const Tensor all = layouter.place({hidden + adapter_rank, row_pitch(columns, adapter_rank)});
      with_rows = all.columns(0, columns);
      with_columns = all.rows(0, hidden).columns(0, columns + adapter_rank);
      weight = with_rows.rows(0, hidden);
    };
    layer.attention_norm = layouter.place({hidden});
    wide.qkv = layouter.place({qkv_rows + 3 * adapter_rank, hidden});
    if (config.qkv_bias) wide.qkv_bias = layouter.place({qkv_rows + 3 * adapter_rank});
    place_with_both(q_rows, layer.output, wide.output, layer.with_room_for_b.output);
    layer.ffn_norm = layouter.place({hidden});
    wide.gate_up = layouter.place({2 * (ffn + adapter_rank), hidden});
    place_with_both(ffn, layer.down, wide.down, layer.with_room_for_b.down);
    layer.qkv = wide.qkv.rows(0, qkv_rows);
    if (config.qkv_bias) layer.qkv_bias = wide.qkv_bias.rows(0, qkv_rows);
    layer.gate_up = wide.gate_up.rows(0, 2 * ffn);
  }
}

std::vector<ShardedTensor> name_all(const ModelConfig& config, const Shard& shard,
                                    const Parameters& parameters) {
  std::vector<ShardedTensor> all;
  const int64_t hidden = config.hidden;
  const int64_t dim = config.head_dim;
  const Range q_range = {shard.query_heads.begin * dim, shard.query_heads.end * dim};
  const Range k_range = {shard.key_heads.begin * dim, shard.key_heads.end * dim};
  const auto replicated = [&](std::string name, const Tensor& local) {
    all.push_back({std::move(name), {local.size()}, Axis::replicated, {0, local.size()}, 1, local});
  };
  const auto sharded = [&](std::string name, std::vector<int64_t> shape, Axis axis, Range range,
                           const Tensor& local, int copies = 1) {
    all.push_back({std::move(name), std::move(shape), axis, range, copies, local});
  };
  sharded("model.embed_tokens.weight", {config.vocabulary, hidden}, Axis::rows, shard.vocabulary,
          parameters.embedding);
  for (size_t i = 0; i < parameters.layers.size(); ++i) {
    const LayerWeights& layer = parameters.layers[i];
    const std::string prefix = fmt::format("model.layers.{}.", i);
    const int64_t q_end = q_range.size();
    const int64_t k_end = q_end + k_range.size();
    const int64_t v_end = k_end + k_range.size();
    const int64_t q_whole = config.heads * dim;
    const int64_t k_whole = config.key_heads * dim;
    const int copies = shard.key_head_copies;
    replicated(prefix + "input_layernorm.weight", layer.attention_norm);
    sharded(prefix + "self_attn.q_proj.weight", {q_whole, hidden}, Axis::rows, q_range,
            layer.qkv.rows(0, q_end));
    sharded(prefix + "self_attn.k_proj.weight", {k_whole, hidden}, Axis::rows, k_range,
            layer.qkv.rows(q_end, k_end), copies);
    sharded(prefix + "self_attn.v_proj.weight", {k_whole, hidden}, Axis::rows, k_range,
            layer.qkv.rows(k_end, v_end), copies);
    if (config.qkv_bias) {
      sharded(prefix + "self_attn.q_proj.bias", {q_whole}, Axis::rows, q_range,
              layer.qkv_bias.rows(0, q_end));
      sharded(prefix + "self_attn.k_proj.bias", {k_whole}, Axis::rows, k_range,
              layer.qkv_bias.rows(q_end, k_end), copies);
      sharded(prefix + "self_attn.v_proj.bias", {k_whole}, Axis::rows, k_range,
              layer.qkv_bias.rows(k_end, v_end), copies);
    }
    sharded(prefix + "self_attn.o_proj.weight", {hidden, q_whole}, Axis::columns, q_range, layer.output);
    replicated(prefix + "post_attention_layernorm.weight", layer.ffn_norm);
    const int64_t ffn = shard.ffn.size();
    sharded(prefix + "mlp.gate_proj.weight", {config.ffn, hidden}, Axis::rows, shard.ffn,
            layer.gate_up.rows(0, ffn));
    sharded(prefix + "mlp.up_proj.weight", {config.ffn, hidden}, Axis::rows, shard.ffn,
            layer.gate_up.rows(ffn, 2 * ffn));
    sharded(prefix + "mlp.down_proj.weight", {hidden, config.ffn}, Axis::columns, shard.ffn, layer.down);
  }
  replicated("model.norm.weight", parameters.final_norm);
  if (!config.tied) {
    sharded("lm_head.weight", {config.vocabulary, hidden}, Axis::rows, shard.vocabulary, parameters.head);
  }
  return all;
}

// GGUF's name of a tensor of Hugging Face's name.
std::string gguf_name(std::string_view name) {
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  constexpr std::pair<std::string_view, std::string_view> modules[] = {
      {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  constexpr std::string_view prefix = "model.layers.";
  require(name.starts_with(prefix), "no GGUF name for tensor " + std::string(name));
  const size_t dot = name.find('.', prefix.size());
  const size_t suffix = name.rfind('.');
  const std::string_view module = name.substr(dot + 1, suffix - dot - 1);
  for (const auto& [ours, theirs] : modules) {
    if (module == ours) {
      return fmt::format("blk.{}.{}{}", name.substr(prefix.size(), dot - prefix.size()), theirs,
                         name.substr(suffix));
    }
  }
  throw BugError("no GGUF name for tensor " + std::string(name));
}

// GGUF files of the Llama architecture hold the query and key rows of a head interleaved (first-half row i at
// 2i, second-half row i at 2i + 1); Hugging Face's convention, ours, has the halves one after the other.
void deinterleave_heads(std::vector<float>& rows, int64_t head_dim, int64_t columns) {
  const auto heads = static_cast<int64_t>(rows.size()) / (head_dim * columns);
  std::vector<float> head(static_cast<size_t>(head_dim * columns));
  for (int64_t h = 0; h < heads; ++h) {
    float* begin = rows.data() + h * head_dim * columns;
    std::copy_n(begin, head.size(), head.data());
    for (int64_t i = 0; i < head_dim; ++i) {
      const int64_t source = i < head_dim / 2 ? 2 * i : 2 * (i - head_dim / 2) + 1;
      std::copy_n(head.data() + source * columns, columns, begin + i * columns);
    }
  }
}

}  // namespace

Shard::Shard(const ModelConfig& config, int tp_size, int rank_in_group)
    : tp(tp_size), tp_rank(rank_in_group) {
  check_tensor_parallel(config.heads, config.key_heads, config.ffn, config.vocabulary, tp);
  const HeadShare heads = head_share(config.heads, config.key_heads, tp, tp_rank);
  query_heads = heads.query_heads;
  key_heads = heads.key_heads;
  ffn = share_of(config.ffn, tp, tp_rank);
  vocabulary = vocabulary_share(config.vocabulary, tp, tp_rank);
  key_head_copies = static_cast<int>(std::max<int64_t>(1, tp / config.key_heads));
}

Parameters::Parameters(const ModelConfig& config, const Shard& shard, Placement place,
                       const std::string& name, int64_t adapter_rank)
    : adapter_rank_(adapter_rank) {
  Layouter layouter(place);
  place_all(layouter, config, shard, adapter_rank, *this);
  buffer_ = Buffer(place.device, layouter.used(), name);
  layouter.begin(buffer_.data());
  place_all(layouter, config, shard, adapter_rank, *this);
  tensors_ = name_all(config, shard, *this);
}

Tensor Parameters::flat() const {
  const DType dtype = embedding.dtype();
  return {buffer_.data(), dtype, buffer_.device(), {buffer_.bytes() / size_of(dtype)}};
}

Parameters load_parameters(const ModelConfig& config, const Shard& shard, Placement place,
                           const WeightFile& file, int64_t adapter_rank) {
  Parameters parameters(config, shard, place, "weights", adapter_rank);
  const bool gguf = file.find("token_embd.weight") != nullptr;
  for (const ShardedTensor& tensor : parameters.tensors()) {
    const std::string name = gguf ? gguf_name(tensor.name) : tensor.name;
    const WeightInfo* info = file.find(name);
    if (info == nullptr) {
      throw InputError(fmt::format("tensor '{}' is missing", name), file.path(),
                       "download the model again, or use one whose configuration fits its weights");
    }
    if (info->shape != tensor.shape) {
      throw InputError(fmt::format("tensor '{}' has shape [{}] where the configuration says [{}]", name,
                                   fmt::join(info->shape, ", "), fmt::join(tensor.shape, ", ")),
                       file.path(), "use a configuration that belongs to these weights");
    }
    const bool matrix = tensor.shape.size() == 2;
    Block block{0, matrix ? tensor.shape[0] : 1, 0, tensor.shape.back()};
    if (tensor.axis == Axis::rows && matrix) {
      block.row_begin = tensor.range.begin;
      block.row_end = tensor.range.end;
    } else if (tensor.axis != Axis::replicated) {
      block.column_begin = tensor.range.begin;
      block.column_end = tensor.range.end;
    }
    std::vector<float> values(static_cast<size_t>(tensor.local.size()));
    activity().progress();
    file.read(name, block, values.data());
    const bool rotated =
        tensor.name.find("q_proj") != std::string::npos || tensor.name.find("k_proj") != std::string::npos;
    if (gguf && rotated && config.architecture == Architecture::llama) {
      deinterleave_heads(values, config.head_dim, matrix ? tensor.shape[1] : 1);
    }
    upload_floats(tensor.local, values);
  }
  return parameters;
}

Parameters random_parameters(const ModelConfig& config, const Shard& shard, const Context& context,
                             uint64_t seed, int64_t adapter_rank) {
  Parameters parameters(config, shard, context.storage_place(), "weights", adapter_rank);
  int64_t index = 0;
  for (const ShardedTensor& tensor : parameters.tensors()) {
    const uint64_t stream = stream_of({.seed = seed, .stage = shard.tp_rank, .sample = index++});
    if (tensor.name.find("norm") != std::string::npos) {
      run(context, Fill{tensor.local, 1.0F});
      continue;
    }
    // Uniform of the variance of Xavier's rule: fast, and the activations keep their size.
    const float width = std::sqrt(3.0F / static_cast<float>(tensor.shape.back()));
    run(context, FillUniform{.out = tensor.local, .width = width, .stream = stream});
  }
  return parameters;
}

std::vector<float> gather_whole(const ShardedTensor& tensor, Communicator& tensor_parallel) {
  const std::vector<float> local = download_floats(tensor.local);
  if (tensor.axis == Axis::replicated || tensor_parallel.size() == 1) {
    return tensor_parallel.rank() == 0 ? local : std::vector<float>();
  }
  // Every rank's range and numbers travel as bytes: sizes may differ between ranks.
  std::string message(2 * sizeof(int64_t) + local.size() * sizeof(float), '\0');
  const int64_t range[2] = {tensor.range.begin, tensor.range.end};
  std::memcpy(message.data(), range, sizeof(range));
  std::memcpy(message.data() + sizeof(range), local.data(), local.size() * sizeof(float));
  const std::vector<std::string> parts = tensor_parallel.all_gather(message);
  if (tensor_parallel.rank() != 0) return {};

  int64_t rows = 1;
  for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows *= tensor.shape[i];
  const bool by_rows = tensor.axis == Axis::rows && tensor.shape.size() == 2;
  const int64_t columns = tensor.shape.back();
  std::vector<float> whole(static_cast<size_t>(rows * columns));
  for (const std::string& part : parts) {
    int64_t bounds[2];
    std::memcpy(bounds, part.data(), sizeof(bounds));
    const char* numbers = part.data() + sizeof(bounds);
    if (by_rows) {
      std::memcpy(whole.data() + bounds[0] * columns, numbers, part.size() - sizeof(bounds));
      continue;
    }
    const int64_t width = bounds[1] - bounds[0];
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(whole.data() + row * columns + bounds[0],
                  numbers + row * width * static_cast<int64_t>(sizeof(float)),
                  static_cast<size_t>(width) * sizeof(float));
    }
  }
  return whole;
}

void scatter_whole(const ShardedTensor& tensor, const std::vector<float>& whole) {
  int64_t size = 1;
  for (int64_t dim : tensor.shape) size *= dim;
  require(static_cast<int64_t>(whole.size()) == size, "whole tensor has the wrong size for " + tensor.name);
  if (tensor.axis == Axis::replicated) {
    upload_floats(tensor.local, whole);
    return;
  }
  const int64_t columns = tensor.shape.back();
  if (tensor.axis == Axis::rows && tensor.shape.size() == 2) {
    upload_floats(tensor.local, std::span(whole).subspan(static_cast<size_t>(tensor.range.begin * columns),
                                                         static_cast<size_t>(tensor.range.size() * columns)));
    return;
  }
  std::vector<float> local;
  local.reserve(static_cast<size_t>(tensor.local.size()));
  for (int64_t row = 0; row < size / columns; ++row) {
    const auto* begin = whole.data() + row * columns;
    local.insert(local.end(), begin + tensor.range.begin, begin + tensor.range.end);
  }
  upload_floats(tensor.local, local);
}

}  // namespace sl
