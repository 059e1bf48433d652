// Causal attention of packed sequences, forward and backward, in tiles (the scheme of FlashAttention, Dao et
// al. 2022): products by BLAS on tiles that stay in cache, nothing quadratic in memory.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/blas.hpp"
#include "kernels/cpu/fast_exp.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {
namespace {

constexpr int64_t tile_queries = 64;
constexpr int64_t tile_keys = 256;

// Where the parts of a packed qkv row, and of a row of queries' width, lie.
struct Heads {
  int64_t queries, keys, head_dim;
  int64_t query(int64_t head) const { return head * head_dim; }
  int64_t key(int64_t head) const { return (queries + head) * head_dim; }
  int64_t value(int64_t head) const { return (queries + keys + head) * head_dim; }
  int64_t group() const { return queries / keys; }
};

ConstRows part(const Tensor& x, int64_t row, int64_t column) {
  return {x.data<float>() + row * x.row_stride() + column, x.row_stride()};
}
Rows mutable_part(const Tensor& x, int64_t row, int64_t column) {
  return {x.data<float>() + row * x.row_stride() + column, x.row_stride()};
}

Heads heads_of(const Tensor& qkv, int64_t query_heads, int64_t key_heads) {
  require(qkv.rank() == 2 && key_heads > 0 && query_heads > 0 && query_heads % key_heads == 0,
          "packed attention: heads do not group");
  return {query_heads, key_heads, qkv.columns() / (query_heads + 2 * key_heads)};
}

void check_offsets(const Tensor& offsets, int64_t rows) {
  const int32_t* at = offsets.data<int32_t>();
  const int64_t sequences = offsets.dim(0) - 1;
  require(sequences >= 0 && at[0] == 0 && at[sequences] == rows,
          "packed attention: offsets do not cover rows");
  for (int64_t s = 0; s < sequences; ++s)
    require(at[s] <= at[s + 1], "packed attention: offsets are not ascending");
}

// Rows begin .. end of the sequence that starts at row `first`.
struct Tile {
  int64_t first, begin, end;
};

// One tile of queries of one head.
void attend(const PackedAttention& op, const Heads& heads, const Tile& tile, int64_t head) {
  const int64_t rows = tile.end - tile.begin, keys = tile.end - tile.first, kv_head = head / heads.group();
  thread_local std::vector<float> scratch;
  scratch.resize(static_cast<size_t>(rows * keys));
  const Rows scores{scratch.data(), keys}, log_sum_exp = rows_of(op.log_sum_exp);
  sgemm(false, true, rows, keys, heads.head_dim, op.scale, part(op.qkv, tile.begin, heads.query(head)),
        part(op.qkv, tile.first, heads.key(kv_head)), 0.0F, scores);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t visible = tile.begin - tile.first + i + 1;
    const float largest = largest_of(scores[i], visible);
    const float total = exp_in_place(scores[i], visible, largest);
    log_sum_exp[tile.begin + i][head] = largest + std::log(total);
    for (int64_t j = 0; j < visible; ++j) scores[i][j] /= total;
    std::fill(scores[i] + visible, scores[i] + keys, 0.0F);
  }
  sgemm(false, false, rows, heads.head_dim, keys, 1.0F, scores,
        part(op.qkv, tile.first, heads.value(kv_head)), 0.0F,
        mutable_part(op.out, tile.begin, heads.query(head)));
}

// Adds what one tile of queries and one of keys contribute to the gradients. With P the probabilities and
// delta(i) = grad_out(i) . out(i): grad_V += P^T grad_out, grad_S = P * (grad_out V^T - delta),
// grad_Q += scale grad_S K, grad_K += scale grad_S^T Q.
void add_gradients(const PackedAttentionBackward& op, const Heads& heads, const Tile& queries,
                   const Tile& keys, int64_t head, const float* delta) {
  const int64_t rows = queries.end - queries.begin, columns = keys.end - keys.begin;
  const int64_t kv_head = head / heads.group(), head_dim = heads.head_dim;
  thread_local std::vector<float> scratch;
  scratch.resize(static_cast<size_t>(2 * tile_queries * tile_keys));
  const Rows probabilities{scratch.data(), tile_keys};
  const Rows gradients{scratch.data() + tile_queries * tile_keys, tile_keys};
  const ConstRows q = part(op.qkv, queries.begin, heads.query(head));
  const ConstRows k = part(op.qkv, keys.begin, heads.key(kv_head));
  const ConstRows v = part(op.qkv, keys.begin, heads.value(kv_head));
  const ConstRows grad_out = part(op.grad_out, queries.begin, heads.query(head));
  const ConstRows log_sum_exp = part(op.log_sum_exp, queries.begin, head);

  sgemm(false, true, rows, columns, head_dim, op.scale, q, k, 0.0F, probabilities);
  sgemm(false, true, rows, columns, head_dim, 1.0F, grad_out, v, 0.0F, gradients);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t visible = std::clamp<int64_t>(queries.begin + i + 1 - keys.begin, 0, columns);
    exp_in_place(probabilities[i], visible, log_sum_exp[i][0]);
    std::fill(probabilities[i] + visible, probabilities[i] + columns, 0.0F);
    for (int64_t j = 0; j < visible; ++j)
      gradients[i][j] = probabilities[i][j] * (gradients[i][j] - delta[i]);
    std::fill(gradients[i] + visible, gradients[i] + columns, 0.0F);
  }
  sgemm(true, false, columns, head_dim, rows, 1.0F, probabilities, grad_out, 1.0F,
        mutable_part(op.grad_qkv, keys.begin, heads.value(kv_head)));
  sgemm(false, false, rows, head_dim, columns, op.scale, gradients, k, 1.0F,
        mutable_part(op.grad_qkv, queries.begin, heads.query(head)));
  sgemm(true, false, columns, head_dim, rows, op.scale, gradients, q, 1.0F,
        mutable_part(op.grad_qkv, keys.begin, heads.key(kv_head)));
}

// The gradients of one key-value head and its query heads over one sequence, in a fixed order.
void attend_backward(const PackedAttentionBackward& op, const Heads& heads, int64_t first, int64_t end,
                     int64_t kv_head) {
  const int64_t head_dim = heads.head_dim, first_query = kv_head * heads.group();
  for (int64_t row = first; row < end; ++row) {
    float* grad = rows_of(op.grad_qkv)[row];
    std::fill_n(grad + heads.query(first_query), heads.group() * head_dim, 0.0F);
    std::fill_n(grad + heads.key(kv_head), head_dim, 0.0F);
    std::fill_n(grad + heads.value(kv_head), head_dim, 0.0F);
  }
  for (int64_t head = first_query; head < first_query + heads.group(); ++head) {
    for (int64_t begin = first; begin < end; begin += tile_queries) {
      const Tile queries{first, begin, std::min(begin + tile_queries, end)};
      const ConstRows out = part(op.out, begin, heads.query(head));
      const ConstRows grad_out = part(op.grad_out, begin, heads.query(head));
      float delta[tile_queries];
      for (int64_t i = 0; i < queries.end - begin; ++i) {
        double product = 0.0;
#pragma omp simd reduction(+ : product)
        for (int64_t d = 0; d < head_dim; ++d)
          product += static_cast<double>(out[i][d]) * static_cast<double>(grad_out[i][d]);
        delta[i] = static_cast<float>(product);
      }
      for (int64_t key = first; key < queries.end; key += tile_keys)
        add_gradients(op, heads, queries, {first, key, std::min(key + tile_keys, queries.end)}, head, delta);
    }
  }
}

}  // namespace

template <>
void launch<Device::cpu>(const Context& context, const PackedAttention& op) {
  const Heads heads = heads_of(op.qkv, op.query_heads, op.key_heads);
  const Dims dims = match_shapes("PackedAttention", context.device,
                                 {{"qkv", op.qkv, "TW"},
                                  {"offsets", op.offsets, "N", DType::i32},
                                  {"out", op.out, "TO"},
                                  {"log_sum_exp", op.log_sum_exp, "TQ"}},
                                 {{'W', (heads.queries + 2 * heads.keys) * heads.head_dim},
                                  {'O', heads.queries * heads.head_dim},
                                  {'Q', heads.queries}});
  check_offsets(op.offsets, dims['T']);
  thread_local std::vector<Tile> all_tiles;
  all_tiles.clear();
  const int32_t* offsets = op.offsets.data<int32_t>();
  for (int64_t s = 0; s + 1 < dims['N']; ++s) {
    for (int64_t begin = offsets[s]; begin < offsets[s + 1]; begin += tile_queries)
      all_tiles.push_back({offsets[s], begin, std::min<int64_t>(begin + tile_queries, offsets[s + 1])});
  }
  const std::vector<Tile>& tiles = all_tiles;
  const int64_t items = static_cast<int64_t>(tiles.size()) * heads.queries;
#pragma omp parallel for schedule(dynamic) if (items > 1)
  for (int64_t item = 0; item < items; ++item)
    attend(op, heads, tiles[static_cast<size_t>(item / heads.queries)], item % heads.queries);
}

template <>
void launch<Device::cpu>(const Context& context, const PackedAttentionBackward& op) {
  const Heads heads = heads_of(op.qkv, op.query_heads, op.key_heads);
  const Dims dims = match_shapes("PackedAttentionBackward", context.device,
                                 {{"qkv", op.qkv, "TW"},
                                  {"offsets", op.offsets, "N", DType::i32},
                                  {"out", op.out, "TO"},
                                  {"log_sum_exp", op.log_sum_exp, "TQ"},
                                  {"grad_out", op.grad_out, "TO"},
                                  {"grad_qkv", op.grad_qkv, "TW"}},
                                 {{'W', (heads.queries + 2 * heads.keys) * heads.head_dim},
                                  {'O', heads.queries * heads.head_dim},
                                  {'Q', heads.queries}});
  check_offsets(op.offsets, dims['T']);
  const int32_t* offsets = op.offsets.data<int32_t>();
  const int64_t items = (dims['N'] - 1) * heads.keys;
#pragma omp parallel for schedule(dynamic) if (items > 1)
  for (int64_t item = 0; item < items; ++item) {
    const int64_t s = item / heads.keys;
    attend_backward(op, heads, offsets[s], offsets[s + 1], item % heads.keys);
  }
}

}  // namespace sl
