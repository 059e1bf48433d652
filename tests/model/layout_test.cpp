// Who holds which number of which weight, over the ranks of grids of up to 4,096, in one process.
#include "dist/layout.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "model/parameters.hpp"

namespace sl {
namespace {

// Heads of a family with everything else small, so that a whole group of ranks fits in memory.
ModelConfig with_heads(int64_t heads, int64_t key_heads, bool qwen2) {
  ModelConfig c;
  c.architecture = qwen2 ? Architecture::qwen2 : Architecture::llama;
  c.vocabulary = 131;  // no multiple of any group
  c.hidden = 6;
  c.ffn = 2 * heads;
  c.layers = 2;
  c.heads = heads;
  c.key_heads = key_heads;
  c.head_dim = 2;
  c.max_positions = 64;
  c.tied = !qwen2;
  c.qkv_bias = qwen2;
  return c;
}

int64_t size_of_whole(const ShardedTensor& tensor) {
  int64_t size = 1;
  for (const int64_t dim : tensor.shape) size *= dim;
  return size;
}

// How many ranks hold each number of a tensor, by what scatter_whole gives them of 0, 1, 2, ...; and that the
// numbers a rank holds are those of its range.
void count_owners(const ShardedTensor& tensor, std::vector<int>& owners) {
  const int64_t size = size_of_whole(tensor);
  std::vector<float> whole(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) whole[static_cast<size_t>(i)] = static_cast<float>(i);
  scatter_whole(tensor, whole);
  owners.resize(static_cast<size_t>(size), 0);
  const bool matrix = tensor.shape.size() == 2;
  const int64_t columns = matrix ? tensor.shape[1] : 1;
  for (const float number : download_floats(tensor.local)) {
    const auto place = static_cast<int64_t>(number);
    ++owners[static_cast<size_t>(place)];
    if (tensor.axis == ShardedTensor::Axis::replicated) continue;
    const bool by_rows = tensor.axis == ShardedTensor::Axis::rows;
    const int64_t along = by_rows ? place / columns : place % columns;
    ASSERT_GE(along, tensor.range.begin) << tensor.name;
    ASSERT_LT(along, tensor.range.end) << tensor.name;
  }
}

void expect_owned_as_stated(const ModelConfig& config, int tp) {
  std::vector<std::vector<int>> owners;
  std::vector<ShardedTensor> stated;
  for (int rank = 0; rank < tp; ++rank) {
    const Parameters parameters(config, Shard(config, tp, rank), Device::cpu, "weights");
    if (rank == 0) stated = parameters.tensors();
    ASSERT_EQ(parameters.tensors().size(), stated.size());
    owners.resize(stated.size());
    for (size_t i = 0; i < stated.size(); ++i) {
      const ShardedTensor& tensor = parameters.tensors()[i];
      ASSERT_EQ(tensor.name, stated[i].name);
      ASSERT_EQ(tensor.copies, stated[i].copies);
      count_owners(tensor, owners[i]);
    }
  }
  for (size_t i = 0; i < stated.size(); ++i) {
    const ShardedTensor& tensor = stated[i];
    const bool key_or_value =
        tensor.name.find("k_proj") != std::string::npos || tensor.name.find("v_proj") != std::string::npos;
    EXPECT_EQ(tensor.copies, key_or_value ? std::max<int64_t>(1, tp / config.key_heads) : 1) << tensor.name;
    const int expected = tensor.axis == ShardedTensor::Axis::replicated ? tp : tensor.copies;
    for (const int count : owners[i]) {
      ASSERT_EQ(count, expected) << tensor.name << " with tp " << tp;
    }
  }
}

TEST(WeightLayout, EveryNumberIsHeldOnceAReplicaAndKeyHeadsAsOftenAsStated) {
  for (const auto& [heads, key_heads] : {std::pair{28, 4}, {32, 8}, {9, 3}, {12, 2}, {64, 8}}) {
    for (const bool qwen2 : {false, true}) {
      const ModelConfig config = with_heads(heads, key_heads, qwen2);
      for (int tp = 1; tp <= heads; ++tp) {
        if (heads % tp == 0 && (key_heads % tp == 0 || tp % key_heads == 0))
          expect_owned_as_stated(config, tp);
      }
    }
  }
}

// The real shapes on every grid of 4,096 ranks: what a rank holds follows from its place, in every replica
// the same; the shares of a replica add up, and differ by no more than a row of the vocabulary.
TEST(WeightLayout, SharesOfRealShapesAddUpOn4096Ranks) {
  constexpr int ranks = 4096;
  for (const char* shape : {"qwen2-7b", "llama3.1-8b", "qwen2-1.5b", "smollm2-135m"}) {
    const ModelConfig config = config_of_shape(shape);
    for (int tp = 1; tp <= 32; tp *= 2) {
      if (config.heads % tp != 0 || (config.key_heads % tp != 0 && tp % config.key_heads != 0)) continue;
      const Grid grid = grid_of(ranks, tp);
      std::vector<int64_t> queries(static_cast<size_t>(grid.dp)), keys(queries), ffn(queries), rows(queries);
      for (int rank = 0; rank < ranks; ++rank) {
        const Place place = place_of(rank, grid);
        const Shard shard(config, grid.tp, place.tp_rank);
        const auto replica = static_cast<size_t>(place.replica);
        ASSERT_EQ(shard.query_heads.begin, queries[replica]);
        ASSERT_EQ(shard.ffn.begin, ffn[replica]);
        ASSERT_EQ(shard.vocabulary.begin, rows[replica]);
        queries[replica] = shard.query_heads.end;
        ffn[replica] = shard.ffn.end;
        rows[replica] = shard.vocabulary.end;
        keys[replica] += shard.key_heads.size();
        ASSERT_EQ(shard.query_heads.size(), config.heads / tp);
        ASSERT_EQ(shard.ffn.size(), config.ffn / tp);
        ASSERT_LE(shard.vocabulary.size() - config.vocabulary / tp, 1);
        ASSERT_GE(shard.vocabulary.size(), config.vocabulary / tp);
      }
      for (size_t replica = 0; replica < queries.size(); ++replica) {
        ASSERT_EQ(queries[replica], config.heads);
        ASSERT_EQ(ffn[replica], config.ffn);
        ASSERT_EQ(rows[replica], config.vocabulary);
        ASSERT_EQ(keys[replica], config.key_heads * std::max<int64_t>(1, tp / config.key_heads));
      }
    }
  }
}

}  // namespace
}  // namespace sl
