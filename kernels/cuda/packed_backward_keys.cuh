// The gradients of keys and values: a block owns 64 keys for each of its two consumer warpgroups, of one
// key-value head, and goes through all queries of the head's group that see them, 64 at a time. The scores
// are made transposed (keys are rows), so that P^T and dS^T are in registers just as wgmma wants its left
// operand: neither is ever written to shared memory, and the warpgroups have nothing to tell each other.
//
// In a step t of a warpgroup, products run behind the other arithmetic:
//     exponentials of S(t)       dK of step t - 1, then grad_out V^T of step t
//     dS(t)                      dV of step t
// The first warp of the producer warpgroup copies tiles; the second brings the rows' statistics.
#pragma once

#include "kernels/cuda/packed_backward.cuh"

namespace sl::cuda {

// Where a query's statistics are: a thread needs those of columns 8 j + 2 (lane % 4) + {0, 1} for all j, and
// finds them side by side. The 4 floats between the parts of two lanes keep them in different banks.
constexpr int statistic_pitch = 64 / 4 + 4, statistic_places = 4 * statistic_pitch;
__device__ __forceinline__ int statistic_place(int query) {
  return query % 8 / 2 * statistic_pitch + query / 8 * 2 + query % 2;
}

// D head dimension, stages of queries.
template <int D_, int stages_>
struct PackedBackwardKeys {
  static constexpr int D = D_, stages = stages_;
  static constexpr int rows = 128, queries = 64;
  static constexpr int threads = 384;
  static constexpr int chunks = D / 64;

  struct Shared {
    alignas(1024) bf16 k[chunks][rows][64];
    alignas(1024) bf16 v[chunks][rows][64];
    alignas(1024) bf16 q[stages][chunks][queries][64];
    alignas(1024) bf16 grad_out[stages][chunks][queries][64];
    // Of the queries, in the order in which threads read them: statistic_place.
    alignas(16) float log_sum_exp[stages][statistic_places], delta[stages][statistic_places];
    uint64_t kv_full, kv_empty;
    uint64_t q_full[stages], q_empty[stages], grad_full[stages], grad_empty[stages];
    PackedTile tile;  // of the K and V that are there; guarded by their barriers
  };
  static constexpr size_t shared_bytes = sizeof(Shared);
};

#if SL_HOPPER

// What a piece of work is: a tile of keys and a part of the group's heads, the numbers of which are in
// tile.head. Its steps: blocks of queries from the end of the sequence to the diagonal, and for each the
// heads. So blocks that work on other keys of the same head read the same queries at about the same time,
// while they are in L2.
template <class F>
struct QuerySteps {
  int key_head, part, first_head, heads;
  int first_block, blocks, steps;
  __device__ __forceinline__ QuerySteps(const PackedTile& tile, const PackedBackwardParameters& p) {
    const int group = p.query_heads / p.key_heads;
    key_head = tile.head / p.parts;
    part = tile.head % p.parts;
    const int begin = group * part / p.parts;
    first_head = key_head * group + begin;
    heads = group * (part + 1) / p.parts - begin;
    first_block = tile.tile * (F::rows / F::queries);
    blocks = (tile.end - tile.first + F::queries - 1) / F::queries;
    steps = (blocks - first_block) * heads;
  }
};

// The rows before `rows` of a warpgroup's product, times a factor, as they are.
template <int D>
__device__ __forceinline__ void write_sums(const float (&d)[D / 2], float factor, float* out, int64_t stride,
                                           int rows) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = product_row() + 8 * i;
    if (row >= rows) continue;
    float* to = out + row * stride + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
      *reinterpret_cast<float2*>(to + 8 * j) =
          make_float2(d[4 * j + 2 * i] * factor, d[4 * j + 2 * i + 1] * factor);
  }
}

template <class F>
__global__ void __launch_bounds__(F::threads, 1)
    packed_backward_keys_kernel(const __grid_constant__ CUtensorMap kv_map,
                                const __grid_constant__ CUtensorMap q_map,
                                const __grid_constant__ CUtensorMap grad_map,
                                const PackedBackwardParameters p) {
  constexpr int D = F::D, stages = F::stages, chunks = F::chunks, queries = F::queries;
  auto& shared = shared_memory<typename F::Shared>();
  const int warpgroup = uniform(threadIdx.x / 128), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    constexpr int consumer_warps = 8;
    barrier_init(&shared.kv_full, 1);
    barrier_init(&shared.kv_empty, (consumer_warps + 1) * 32);
    for (int i = 0; i < stages; ++i) {
      barrier_init(&shared.q_full[i], 1 + 32);
      barrier_init(&shared.q_empty[i], consumer_warps * 32);
      barrier_init(&shared.grad_full[i], 1);
      barrier_init(&shared.grad_empty[i], consumer_warps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  wait_for_previous();
  start_next();

  if (warpgroup == 0) {
    give_registers<24>();
    if (threadIdx.x < 32) {
      const int pieces = p.key_heads * p.parts;
      PackedTiles tiles(p.offsets, p.sequences, F::rows, pieces);
      StageCursor<stages> stage;
      uint32_t kv_parity = 0;
      int64_t index = blockIdx.x;
      while (true) {
        const PackedTile tile = tiles.find<true>(index, [&](int) { return pieces; });
        if (lane == 0) {
          barrier_wait(&shared.kv_empty, kv_parity ^ 1);
          shared.tile = tile;
          if (tile.head < 0) {
            barrier_arrive(&shared.kv_full);
          } else {
            const int key_chunk = (p.query_heads + tile.head / p.parts) * chunks,
                      row = tile.first + tile.tile * F::rows;
            barrier_expect(&shared.kv_full, sizeof(shared.k) + sizeof(shared.v));
            tma_load(shared.k, &kv_map, 0, row, key_chunk, &shared.kv_full);
            tma_load(shared.v, &kv_map, 0, row, key_chunk + p.key_heads * chunks, &shared.kv_full);
          }
        }
        if (tile.head < 0) break;
        if (lane == 0) {
          const QuerySteps<F> steps(tile, p);
          for (int block = steps.blocks - 1; block >= steps.first_block; --block) {
            for (int head = steps.first_head; head < steps.first_head + steps.heads; ++head) {
              const int row = tile.first + block * queries;
              barrier_wait(&shared.q_empty[stage.stage], stage.parity ^ 1);
              barrier_expect(&shared.q_full[stage.stage], sizeof(shared.q[0]));
              tma_load(shared.q[stage.stage], &q_map, 0, row, head * chunks, &shared.q_full[stage.stage]);
              barrier_wait(&shared.grad_empty[stage.stage], stage.parity ^ 1);
              barrier_expect(&shared.grad_full[stage.stage], sizeof(shared.grad_out[0]));
              tma_load(shared.grad_out[stage.stage], &grad_map, 0, row, head * chunks,
                       &shared.grad_full[stage.stage]);
              stage.next();
            }
          }
          index = take_work(p.queue);
        }
        index = __shfl_sync(0xFFFFFFFFU, index, 0);
        kv_parity ^= 1;
      }
      if (lane == 0) leave_work(p.queue);
    } else if (threadIdx.x < 64) {
      StageCursor<stages> stage;
      uint32_t kv_parity = 0;
      while (true) {
        barrier_wait(&shared.kv_full, kv_parity);
        kv_parity ^= 1;
        const PackedTile tile = uniform(shared.tile);
        barrier_arrive(&shared.kv_empty);
        if (tile.head < 0) break;
        const QuerySteps<F> steps(tile, p);
        for (int block = steps.blocks - 1; block >= steps.first_block; --block) {
          for (int head = steps.first_head; head < steps.first_head + steps.heads; ++head) {
            const int64_t row = tile.first + block * queries + lane;
            const RowStatistics low = read_statistics<D>(p, row, tile.end, head);
            const RowStatistics high = read_statistics<D>(p, row + 32, tile.end, head);
            barrier_wait(&shared.q_empty[stage.stage], stage.parity ^ 1);
            shared.log_sum_exp[stage.stage][statistic_place(lane)] = low.log_sum_exp;
            shared.log_sum_exp[stage.stage][statistic_place(lane + 32)] = high.log_sum_exp;
            shared.delta[stage.stage][statistic_place(lane)] = low.delta;
            shared.delta[stage.stage][statistic_place(lane + 32)] = high.delta;
            barrier_arrive(&shared.q_full[stage.stage]);
            stage.next();
          }
        }
      }
    }
  } else {
    take_registers<240>();
    const int consumer = warpgroup - 1;
    const auto release = [&](uint64_t* empty) {
      __syncwarp();
      if (lane == 0) barrier_arrive(empty);
    };
    const float scale_log2 = p.scale * 1.4426950408889634F;
    StageCursor<stages> q, grad;  // of the next scores, and of the next grad_out V^T
    uint32_t kv_parity = 0;
    while (true) {
      barrier_wait(&shared.kv_full, kv_parity);
      kv_parity ^= 1;
      const PackedTile tile = uniform(shared.tile);
      if (tile.head < 0) break;
      const QuerySteps<F> steps(tile, p);
      const int first_key = tile.tile * F::rows + consumer * 64;

      float dk[D / 2], dv[D / 2], s[queries / 2], dp[queries / 2];
      uint32_t left[queries / 4];  // P^T, then dS^T
#pragma unroll
      for (int i = 0; i < D / 2; ++i) dk[i] = dv[i] = 0.0F;

      const auto start_transposed = [&](float(&d)[queries / 2], const bf16* keys, const bf16* rows) {
        const uint64_t a = describe_k_major(keys + consumer * 64 * 64), b = describe_k_major(rows);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
          Wgmma<queries>::multiply(d, advance(a, i / 4 * sizeof(shared.k[0]) + i % 4 * 32),
                                   advance(b, i / 4 * sizeof(shared.q[0][0]) + i % 4 * 32), i > 0);
        }
        wgmma_commit();
      };
      const auto start_sum = [&](float(&d)[D / 2], const bf16* rows) {
        const uint64_t b = describe_mn_major(rows, sizeof(shared.q[0][0]));
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < queries / 16; ++i) {
          Wgmma<D, false, true>::multiply(d, left + 4 * i, advance(b, i * 2048), true);
        }
        wgmma_commit();
      };
      const auto start_scores = [&] {
        barrier_wait(&shared.q_full[q.stage], q.parity);
        start_transposed(s, &shared.k[0][0][0], &shared.q[q.stage][0][0][0]);
      };
      const auto start_grad_values = [&] {
        barrier_wait(&shared.grad_full[grad.stage], grad.parity);
        start_transposed(dp, &shared.v[0][0][0], &shared.grad_out[grad.stage][0][0][0]);
      };

      const auto read_statistic = [&](float(&to)[queries / 4], const float* places) {
        const float4* from = reinterpret_cast<const float4*>(places + lane % 4 * statistic_pitch);
#pragma unroll
        for (int i = 0; i < queries / 16; ++i) {
          const float4 x = from[i];
          to[4 * i] = x.x;
          to[4 * i + 1] = x.y;
          to[4 * i + 2] = x.z;
          to[4 * i + 3] = x.w;
        }
      };
      int block = steps.blocks - 1, heads_left = steps.heads;
      int old_stage = 0;  // of the queries of the step before
      // What the step before left: dV still runs; then dS^T can be packed, and dK be started.
      const auto finish_values = [&] {
        wgmma_wait<0>();
        pin(dv);
        pin(s);
        release(&shared.grad_empty[grad.stage]);
        grad.next();
#pragma unroll
        for (int i = 0; i < queries / 4; ++i) left[i] = pack(s[2 * i], s[2 * i + 1]);
        old_stage = q.stage;
        q.next();
      };
      const auto step = [&](auto first) {
        if constexpr (!decltype(first)::value) finish_values();
        start_scores();
        if constexpr (!decltype(first)::value) start_sum(dk, &shared.q[old_stage][0][0][0]);
        start_grad_values();
        float statistic[queries / 4];
        read_statistic(statistic, shared.log_sum_exp[q.stage]);
        wgmma_wait<decltype(first)::value ? 1 : 2>();
        pin(s);
#pragma unroll
        for (int j = 0; j < queries / 2; ++j)
          s[j] = exp2_fast(s[j] * scale_log2 - statistic[j / 4 * 2 + j % 2]);
        pin(s);
        if (block * queries < first_key + 64) {  // some of these keys are after some of these queries
          const int hidden = first_key + product_row() - block * queries - lane % 4 * 2;
#pragma unroll
          for (int j = 0; j < queries / 2; ++j) {
            const int column = j / 4 * 8 + j % 2, row = j / 2 % 2 * 8;
            if (column < hidden + row) s[j] = 0.0F;
          }
        }
        pin(s);
        wgmma_wait<1>();
        if constexpr (!decltype(first)::value) {
          pin(dk);
          barrier_arrive(&shared.q_empty[old_stage]);
        }
#pragma unroll
        for (int i = 0; i < queries / 4; ++i) left[i] = pack(s[2 * i], s[2 * i + 1]);
        start_sum(dv, &shared.grad_out[grad.stage][0][0][0]);
        read_statistic(statistic, shared.delta[q.stage]);
        wgmma_wait<1>();
        pin(dp);
#pragma unroll
        for (int j = 0; j < queries / 2; ++j) s[j] *= dp[j] - statistic[j / 4 * 2 + j % 2];
        pin(s);
        if (--heads_left == 0) {
          --block;
          heads_left = steps.heads;
        }
      };
      step(std::true_type{});
      for (int t = 1; t < steps.steps; ++t) step(std::false_type{});
      finish_values();
      start_sum(dk, &shared.q[old_stage][0][0][0]);
      wgmma_wait<0>();
      pin(dk);
      barrier_arrive(&shared.q_empty[old_stage]);
      barrier_arrive(&shared.kv_empty);

      const int64_t first_row = tile.first + first_key;
      const int rows = tile.end - static_cast<int>(first_row);
      if (p.parts > 1) {
        float* sums =
            p.part_sums + ((steps.part * p.rows + first_row) * 2 * p.key_heads + steps.key_head) * D;
        write_sums<D>(dk, p.scale, sums, 2 * p.key_heads * D, rows);
        write_sums<D>(dv, 1.0F, sums + p.key_heads * D, 2 * p.key_heads * D, rows);
      } else {
        bf16* grad_key = p.grad_qkv + first_row * p.grad_qkv_stride + (p.query_heads + steps.key_head) * D;
        write_product<D>(dk, {p.scale, p.scale}, grad_key, p.grad_qkv_stride, rows);
        write_product<D>(dv, {1.0F, 1.0F}, grad_key + p.key_heads * D, p.grad_qkv_stride, rows);
      }
    }
  }
}

#else

template <class F>
__global__ void packed_backward_keys_kernel(const __grid_constant__ CUtensorMap kv_map,
                                            const __grid_constant__ CUtensorMap q_map,
                                            const __grid_constant__ CUtensorMap grad_map,
                                            const PackedBackwardParameters p) {}

#endif

}  // namespace sl::cuda
