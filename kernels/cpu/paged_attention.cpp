// Causal attention of a mixed batch over pages of keys and values. One way of computing for decoding rows and
// prompt chunks: every element is summed in key order, so a row's bits depend on its own context alone.
#include <algorithm>
#include <vector>

#include "kernels/cpu/fast_exp.hpp"
#include "kernels/cpu/fixed_order.hpp"
#include "kernels/ops.hpp"
#include "kernels/shapes.hpp"

namespace sl {
namespace {

// Some rows of one sequence, worked on together for each key-value head.
struct Block {
  int64_t sequence, row_begin, row_end;
};

// What one thread needs for one block and key-value head: at most block_queries queries.
struct Workspace {
  std::vector<float> queries, scores, sums;
};

constexpr int64_t block_queries = 24;

// Cuts the rows of every sequence into blocks of at most `rows_per_block`, checking offsets and lengths.
void cut_into_blocks(const PagedAttention& op, int64_t rows_per_block, int64_t page_tokens, int64_t pages,
                     std::vector<Block>& blocks) {
  const int64_t sequences = op.context_lengths.dim(0), table_width = op.page_tables.columns();
  const int32_t* offsets = op.query_offsets.data<int32_t>();
  const int32_t* lengths = op.context_lengths.data<int32_t>();
  const int32_t* tables = op.page_tables.data<int32_t>();
  blocks.clear();
  require(offsets[0] == 0 && offsets[sequences] == op.qkv.rows(),
          "PagedAttention: offsets do not cover rows");
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t rows = offsets[s + 1] - offsets[s];
    require(rows >= 0 && lengths[s] >= rows, "PagedAttention: a context shorter than its rows");
    const int64_t used = (lengths[s] + page_tokens - 1) / page_tokens;
    require(used <= table_width, "PagedAttention: a context longer than its page table");
    for (int64_t i = 0; i < used; ++i) {
      const int32_t page = tables[s * op.page_tables.row_stride() + i];
      require(page >= 0 && page < pages, "PagedAttention: a page outside the pool");
    }
    for (int64_t row = offsets[s]; row < offsets[s + 1]; row += rows_per_block)
      blocks.push_back({s, row, std::min<int64_t>(row + rows_per_block, offsets[s + 1])});
  }
}

void attend(const PagedAttention& op, const Block& block, int64_t kv_head, Workspace& work) {
  const int64_t kv_heads = op.key_pages.dim(1), page_tokens = op.key_pages.dim(2),
                head_dim = op.key_pages.dim(3);
  const int64_t group = op.query_heads / kv_heads;
  const int64_t rows = block.row_end - block.row_begin, queries = rows * group;
  const int32_t* table = op.page_tables.data<int32_t>() + block.sequence * op.page_tables.row_stride();
  const int64_t behind = op.query_offsets.data<int32_t>()[block.sequence + 1] - block.row_end;
  const int64_t length = op.context_lengths.data<int32_t>()[block.sequence] - behind;  // of the last row
  const Rows qkv = rows_of(op.qkv), out = rows_of(op.out);

  work.queries.resize(static_cast<size_t>(queries * head_dim));
  work.scores.resize(static_cast<size_t>(queries * length));
  work.sums.assign(static_cast<size_t>(queries * head_dim), 0.0F);
  const Rows q{work.queries.data(), head_dim}, scores{work.scores.data(), length},
      sums{work.sums.data(), head_dim};
  for (int64_t i = 0; i < rows; ++i)
    std::copy_n(qkv[block.row_begin + i] + kv_head * group * head_dim, group * head_dim, q[i * group]);

  const auto head_of_page = [&](const Tensor& pages, int64_t i) {
    return ConstRows{
        static_cast<const float*>(pages.raw()) + (table[i] * kv_heads + kv_head) * page_tokens * head_dim,
        head_dim};
  };
  for (int64_t i = 0; i * page_tokens < length; ++i) {
    const int64_t first = i * page_tokens, tokens = std::min(page_tokens, length - first);
    dot_products(q, queries, head_of_page(op.key_pages, i), tokens, head_dim, op.scale,
                 {scores.data + first, length});
  }
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t visible = length - (rows - 1 - i / group);
    const float inverse = 1.0F / exp_in_place(scores[i], visible, largest_of(scores[i], visible));
    for (int64_t j = 0; j < visible; ++j) scores[i][j] *= inverse;
    std::fill(scores[i] + visible, scores[i] + length, 0.0F);
  }
  for (int64_t i = 0; i * page_tokens < length; ++i) {
    const int64_t first = i * page_tokens, tokens = std::min(page_tokens, length - first);
    add_weighted_rows({scores.data + first, length}, queries, head_of_page(op.value_pages, i), tokens,
                      head_dim, sums);
  }
  for (int64_t i = 0; i < rows; ++i)
    std::copy_n(sums[i * group], group * head_dim, out[block.row_begin + i] + kv_head * group * head_dim);
}

}  // namespace

// Every launch cuts its batch anew: blocks of rows are all there is to decide.
template <>
void launch<Device::cpu>(const Context&, const PlanPagedAttention&) {}

template <>
void launch<Device::cpu>(const Context& context, const PagedAttention& op) {
  require(op.key_pages.rank() == 4, "PagedAttention: key_pages is not P, K, G, D");
  const int64_t kv_heads = op.key_pages.dim(1), head_dim = op.key_pages.dim(3);
  const int64_t sequences = op.context_lengths.dim(0);
  match_shapes("PagedAttention", context.device,
               {{"qkv", op.qkv, "TW"},
                {"key_pages", op.key_pages, "PKGD"},
                {"value_pages", op.value_pages, "PKGD"},
                {"query_offsets", op.query_offsets, "N", DType::i32},
                {"context_lengths", op.context_lengths, "S", DType::i32},
                {"page_tables", op.page_tables, "SM", DType::i32},
                {"out", op.out, "TO"}},
               {{'W', (op.query_heads + 2 * kv_heads) * head_dim},
                {'O', op.query_heads * head_dim},
                {'N', sequences + 1}});
  require(kv_heads > 0 && op.query_heads % kv_heads == 0, "PagedAttention: heads do not group");
  thread_local std::vector<Block> all_blocks;
  const int64_t rows_per_block =
      std::max<int64_t>(1, block_queries * kv_heads / std::max<int64_t>(op.query_heads, 1));
  cut_into_blocks(op, rows_per_block, op.key_pages.dim(2), op.key_pages.dim(0), all_blocks);
  const std::vector<Block>& blocks = all_blocks;
  const int64_t items = static_cast<int64_t>(blocks.size()) * kv_heads;
#pragma omp parallel for schedule(dynamic) if (items > 1)
  for (int64_t item = 0; item < items; ++item) {
    thread_local Workspace work;
    attend(op, blocks[static_cast<size_t>(item / kv_heads)], item % kv_heads, work);
  }
}

}  // namespace sl
