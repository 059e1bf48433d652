// The gradient of queries: a block owns 64 query rows for each of its two consumer warpgroups, of one head,
// and goes through the keys that they see, N at a time, from the diagonal down. dS stays in registers as the
// left operand of dQ += dS K, which runs behind the exponentials of the next step. Otherwise like the forward
// kernel (packed_attention_hopper.cuh): producer warp, persistent blocks, longest tiles first.
#pragma once

#include "kernels/cuda/packed_backward.cuh"

namespace sl::cuda {

// D head dimension, N keys a step, stages of keys and of values.
template <int D_, int N_, int key_stages_, int value_stages_>
struct PackedBackwardQueries {
  static constexpr int D = D_, N = N_, key_stages = key_stages_, value_stages = value_stages_;
  static constexpr int rows = 128;
  static constexpr int threads = 384;
  static constexpr int chunks = D / 64;

  struct Shared {
    alignas(1024) bf16 q[chunks][rows][64];
    alignas(1024) bf16 grad_out[chunks][rows][64];
    alignas(1024) bf16 k[key_stages][chunks][N][64];
    alignas(1024) bf16 v[value_stages][chunks][N][64];
    uint64_t q_full, q_empty;
    uint64_t k_full[key_stages], k_empty[key_stages], v_full[value_stages], v_empty[value_stages];
    PackedTile tile;  // of the Q that is there; guarded by its barriers
  };
  static constexpr size_t shared_bytes = sizeof(Shared);
};

#if SL_HOPPER

template <class F>
__global__ void __launch_bounds__(F::threads, 1)
    packed_backward_queries_kernel(const __grid_constant__ CUtensorMap q_map,
                                   const __grid_constant__ CUtensorMap grad_map,
                                   const __grid_constant__ CUtensorMap kv_map,
                                   const PackedBackwardParameters p) {
  constexpr int D = F::D, N = F::N, chunks = F::chunks;
  auto& shared = shared_memory<typename F::Shared>();
  const int warpgroup = uniform(threadIdx.x / 128), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    constexpr int consumer_warps = 8;
    barrier_init(&shared.q_full, 1);
    barrier_init(&shared.q_empty, consumer_warps * 32);
    for (int i = 0; i < F::key_stages; ++i) {
      barrier_init(&shared.k_full[i], 1);
      barrier_init(&shared.k_empty[i], consumer_warps);
    }
    for (int i = 0; i < F::value_stages; ++i) {
      barrier_init(&shared.v_full[i], 1);
      barrier_init(&shared.v_empty[i], consumer_warps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  wait_for_previous();
  start_next();

  if (warpgroup == 0) {
    give_registers<40>();
    if (threadIdx.x >= 32) return;
    const int group = p.query_heads / p.key_heads;
    PackedTiles tiles(p.offsets, p.sequences, F::rows, p.query_heads);
    StageCursor<F::key_stages> k;
    StageCursor<F::value_stages> v;
    uint32_t q_parity = 0;
    const auto section = [&](int length) {
      const int key_heads = max(1, p.section_bytes / max(1, length * D * 4));
      return min(key_heads, p.key_heads) * group;
    };
    int64_t index = blockIdx.x;
    while (true) {
      const PackedTile tile = tiles.find<false>(index, section);
      if (lane == 0) {
        barrier_wait(&shared.q_empty, q_parity ^ 1);
        shared.tile = tile;
        if (tile.head < 0) {
          barrier_arrive(&shared.q_full);
        } else {
          const int row = tile.first + tile.tile * F::rows;
          barrier_expect(&shared.q_full, sizeof(shared.q) + sizeof(shared.grad_out));
          tma_load(shared.q, &q_map, 0, row, tile.head * chunks, &shared.q_full);
          tma_load(shared.grad_out, &grad_map, 0, row, tile.head * chunks, &shared.q_full);
        }
      }
      if (tile.head < 0) break;
      if (lane == 0) {
        const int key_chunk = (p.query_heads + tile.head / group) * chunks;
        const int value_chunk = key_chunk + p.key_heads * chunks;
        const int keys = min(tile.end - tile.first, (tile.tile + 1) * F::rows);
        for (int block = (keys - 1) / N; block >= 0; --block) {
          const int row = tile.first + block * N;
          barrier_wait(&shared.k_empty[k.stage], k.parity ^ 1);
          barrier_expect(&shared.k_full[k.stage], sizeof(shared.k[0]));
          tma_load(shared.k[k.stage], &kv_map, 0, row, key_chunk, &shared.k_full[k.stage]);
          k.next();
          barrier_wait(&shared.v_empty[v.stage], v.parity ^ 1);
          barrier_expect(&shared.v_full[v.stage], sizeof(shared.v[0]));
          tma_load(shared.v[v.stage], &kv_map, 0, row, value_chunk, &shared.v_full[v.stage]);
          v.next();
        }
        index = take_work(p.queue);
      }
      index = __shfl_sync(0xFFFFFFFFU, index, 0);
      q_parity ^= 1;
    }
    if (lane == 0) leave_work(p.queue);
  } else {
    take_registers<232>();
    const int consumer = warpgroup - 1;
    const auto release = [&](uint64_t* empty) {
      __syncwarp();
      if (lane == 0) barrier_arrive(empty);
    };
    // The warpgroups start their products in turn.
    const auto take_turn = [&] { named_sync(1 + consumer, 256); };
    const auto end_turn = [&] { named_arrive(2 - consumer, 256); };
    if (consumer == 1) end_turn();  // the first consumer begins

    const float scale_log2 = p.scale * 1.4426950408889634F;
    StageCursor<F::key_stages> k;
    StageCursor<F::value_stages> v;
    uint32_t q_parity = 0;
    while (true) {
      barrier_wait(&shared.q_full, q_parity);
      q_parity ^= 1;
      const PackedTile tile = uniform(shared.tile);
      if (tile.head < 0) break;
      const int first_query = tile.tile * F::rows + consumer * 64;
      const int64_t first_row = tile.first + first_query;
      const int keys = min(tile.end - tile.first, (tile.tile + 1) * F::rows);
      int block = (keys - 1) / N;
      const RowStatistics rows[2] = {
          read_statistics<D>(p, first_row + product_row(), tile.end, tile.head),
          read_statistics<D>(p, first_row + product_row() + 8, tile.end, tile.head)};

      float s[N / 2], dp[N / 2], dq[D / 2];
      uint32_t left[N / 4];  // dS
#pragma unroll
      for (int i = 0; i < D / 2; ++i) dq[i] = 0.0F;

      const auto start_product = [&](float(&d)[N / 2], const bf16* rows, const bf16* keys) {
        const uint64_t a = describe_k_major(rows + consumer * 64 * 64), b = describe_k_major(keys);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
          Wgmma<N>::multiply(d, advance(a, i / 4 * sizeof(shared.q[0]) + i % 4 * 32),
                             advance(b, i / 4 * sizeof(shared.k[0][0]) + i % 4 * 32), i > 0);
        }
        wgmma_commit();
      };
      const auto start_scores = [&] {
        barrier_wait(&shared.k_full[k.stage], k.parity);
        take_turn();
        start_product(s, &shared.q[0][0][0], &shared.k[k.stage][0][0][0]);
        barrier_wait(&shared.v_full[v.stage], v.parity);
        start_product(dp, &shared.grad_out[0][0][0], &shared.v[v.stage][0][0][0]);
      };
      int old_stage = 0;  // of the keys of the step before
      const auto start_sum = [&] {
        const uint64_t b = describe_mn_major(&shared.k[old_stage][0][0][0], sizeof(shared.k[0][0]));
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < N / 16; ++i) {
          Wgmma<D, false, true>::multiply(dq, left + 4 * i, advance(b, i * 2048), true);
        }
        wgmma_commit();
      };
      // From scores to dS; `behind` products were started after grad_out V^T.
      const auto make_ds = [&](auto masked, auto behind) {
        wgmma_wait<decltype(behind)::value + 1>();
        pin(s);
#pragma unroll
        for (int j = 0; j < N / 2; ++j) s[j] = exp2_fast(s[j] * scale_log2 - rows[j / 2 % 2].log_sum_exp);
        if constexpr (decltype(masked)::value) {
          const int last = first_query - block * N + product_row() - lane % 4 * 2;
#pragma unroll
          for (int j = 0; j < N / 2; ++j) {
            const int column = j / 4 * 8 + j % 2, row = j / 2 % 2 * 8;
            if (column > last + row) s[j] = 0.0F;
          }
        }
        pin(s);
        wgmma_wait<decltype(behind)::value>();
        pin(dp);
        release(&shared.v_empty[v.stage]);
        v.next();
        old_stage = k.stage;
        k.next();
#pragma unroll
        for (int j = 0; j < N / 2; ++j) s[j] *= dp[j] - rows[j / 2 % 2].delta;
        pin(s);
      };
      bool running = false;
      const auto finish_sum = [&] {
        wgmma_wait<0>();
        pin(dq);
        pin(s);
        if (running) release(&shared.k_empty[(old_stage + F::key_stages - 1) % F::key_stages]);
        running = true;
#pragma unroll
        for (int i = 0; i < N / 4; ++i) left[i] = pack(s[2 * i], s[2 * i + 1]);
      };
      const auto step = [&](auto masked) {
        finish_sum();
        start_scores();
        start_sum();
        end_turn();
        make_ds(masked, std::integral_constant<int, 1>{});
      };

      start_scores();
      end_turn();
      make_ds(std::true_type{}, std::integral_constant<int, 0>{});
      for (--block; block >= 0 && (block + 1) * N > tile.tile * F::rows; --block) step(std::true_type{});
      for (; block >= 0; --block) step(std::false_type{});
      barrier_arrive(&shared.q_empty);
      finish_sum();
      start_sum();
      wgmma_wait<0>();
      pin(dq);
      release(&shared.k_empty[old_stage]);
      write_product<D>(dq, {p.scale, p.scale}, p.grad_qkv + first_row * p.grad_qkv_stride + tile.head * D,
                       p.grad_qkv_stride, tile.end - static_cast<int>(first_row));
    }
    if (consumer == 0) take_turn();  // the arrival of the other
  }
}

#else

template <class F>
__global__ void packed_backward_queries_kernel(const __grid_constant__ CUtensorMap q_map,
                                               const __grid_constant__ CUtensorMap grad_map,
                                               const __grid_constant__ CUtensorMap kv_map,
                                               const PackedBackwardParameters p) {}

#endif

}  // namespace sl::cuda
