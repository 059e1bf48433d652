// Causal attention of packed sequences on Hopper: the kernel. The scheme is FlashAttention-3's (Shah et al.
// 2024), written anew.
//
// A block works on 64 query rows of one head for each of its consumer warpgroups. One producer warp copies Q,
// K and V tiles into shared memory (TMA); the consumers multiply (wgmma): S = Q K^T into registers, softmax
// there, O += P V with P from registers. Two overlaps keep the tensor cores busy while exponentials are
// taken:
//   - inside a warpgroup, S of the next keys is started before P V of the last ones, and the softmax of that
//   S
//     runs while P V does;
//   - between the warpgroups, named barriers let one start its products only after the other has started its
//     own, so that the softmax of one falls on the products of the other ("ping-pong").
// Blocks are persistent. The longest tiles are handed out first; the next one's Q, K and V are on their way
// while the last one is written out. Key blocks above the diagonal are never touched. Rows of a tile behind
// the end of the sequence are computed (from whatever lies there) and not written; keys behind it are masked,
// since causal masking hides them from every row that is written.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/packed_tiles.cuh"
#include "kernels/cuda/packed_warpgroup.cuh"

namespace sl::cuda {

struct PackedForwardParameters {
  const int32_t* offsets;
  bf16* out;
  float* log_sum_exp;
  PackedQueue* queue;
  int64_t out_stride, log_sum_exp_stride;
  int sequences, query_heads, key_heads;
  int section_bytes;  // of keys and values that a section of heads may read
  float scale;
};

// What one configuration needs: D head dimension, N keys a step, stages of K and of V, and of Q.
template <int D_, int N_, int stages_, int q_stages_>
struct PackedForward {
  static constexpr int D = D_, N = N_, stages = stages_, q_stages = q_stages_;
  static constexpr int consumers = 2;  // warpgroups
  static constexpr int rows = 64 * consumers;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int chunks = D / 64;  // tiles of 64 columns side by side
  static constexpr int producer_registers = 40;
  static constexpr int consumer_registers = 232;

  struct Shared {
    alignas(1024) bf16 q[q_stages][chunks][rows][64];
    alignas(1024) bf16 k[stages][chunks][N][64];
    alignas(1024) bf16 v[stages][chunks][N][64];
    uint64_t q_full[q_stages], q_empty[q_stages];
    uint64_t k_full[stages], k_empty[stages], v_full[stages], v_empty[stages];
    PackedTile tile[q_stages];  // of the Q that is there; guarded by its barriers
  };
  static constexpr size_t shared_bytes = sizeof(Shared);
};

#if SL_HOPPER

// Softmax over the steps of one warpgroup's rows; each thread has two of them (8 apart) and a quarter of
// their columns. Maxima are of unscaled scores; the scale is folded into the base-2 exponent.
template <int N>
struct OnlineSoftmax {
  // By how many powers of 2 scores may outgrow the maximum that exponentials are taken against, before that
  // maximum and all sums are adjusted: exponentials and sums stay far from overflow, and after the first few
  // blocks hardly any step has to multiply the output. (The idea is FlashAttention-4's.)
  static constexpr float tolerated_growth = 8.0F;

  float scale_log2;
  float largest[2], sum[2], shrink[2];  // sum: of this thread's columns only

  // Hides column c of the block from row r unless c <= r + offset (r: of the warpgroup).
  __device__ __forceinline__ static void mask(float (&s)[N / 2], int offset) {
    const int last = offset + product_row() - 2 * (threadIdx.x % 4);
#pragma unroll
    for (int j = 0; j < N / 2; ++j) {
      const int column = j / 4 * 8 + j % 2, row = j / 2 % 2 * 8;
      if (column > last + row) s[j] = -INFINITY;
    }
  }

  // Turns scores into exponentials, adds them up, and says in `shrink` by what earlier sums are to be
  // multiplied. `may_hide`: a whole row may be hidden.
  template <bool first, bool may_hide>
  __device__ __forceinline__ void step(float (&s)[N / 2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float highest = s[2 * i];
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        highest = fmaxf(highest, fmaxf(s[4 * j + 2 * i], s[4 * j + 2 * i + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFFU, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFFU, highest, 2));
      if constexpr (first) {
        largest[i] = highest;
      } else {
        const bool grown = (highest - largest[i]) * scale_log2 > tolerated_growth;
        shrink[i] = grown ? exp2_fast((largest[i] - highest) * scale_log2) : 1.0F;
        largest[i] = grown ? highest : largest[i];
      }
      const float subtract = may_hide && largest[i] == -INFINITY ? 0.0F : largest[i] * scale_log2;
      float total = 0.0F;
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[4 * j + 2 * i + e];
          x = exp2_fast(x * scale_log2 - subtract);
          total += x;
        }
      }
      sum[i] = first ? total : sum[i] * shrink[i] + total;
    }
  }
};

template <class F>
__global__ void __launch_bounds__(F::threads, 1)
    packed_forward_kernel(const __grid_constant__ CUtensorMap q_map,
                          const __grid_constant__ CUtensorMap kv_map, const PackedForwardParameters p) {
  constexpr int D = F::D, N = F::N, stages = F::stages, chunks = F::chunks;
  auto& shared = shared_memory<typename F::Shared>();
  const int warpgroup = uniform(threadIdx.x / 128);
  if (threadIdx.x == 0) {
    prefetch_map(&q_map);
    prefetch_map(&kv_map);
    constexpr int consumer_warps = 4 * F::consumers;
    for (int i = 0; i < F::q_stages; ++i) {
      barrier_init(&shared.q_full[i], 1);
      barrier_init(&shared.q_empty[i], consumer_warps * 32);
    }
    for (int i = 0; i < stages; ++i) {
      barrier_init(&shared.k_full[i], 1);
      barrier_init(&shared.v_full[i], 1);
      barrier_init(&shared.k_empty[i], consumer_warps);
      barrier_init(&shared.v_empty[i], consumer_warps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  wait_for_previous();
  start_next();

  if (warpgroup == 0) {
    // The producer: one warp finds the tiles, one lane of it copies.
    give_registers<F::producer_registers>();
    if (threadIdx.x >= 32) return;
    const bool leader = threadIdx.x == 0;
    const int group = p.query_heads / p.key_heads;
    PackedTiles tiles(p.offsets, p.sequences, F::rows, p.query_heads);
    StageCursor<F::q_stages> q;
    StageCursor<stages> k, v;
    const auto section = [&](int length) {
      const int key_heads = max(1, p.section_bytes / max(1, length * D * 4));
      return min(key_heads, p.key_heads) * group;
    };
    int64_t index = blockIdx.x;
    while (true) {
      const PackedTile tile = tiles.find<false>(index, section);
      if (leader) {
        barrier_wait(&shared.q_empty[q.stage], q.parity ^ 1);
        shared.tile[q.stage] = tile;
        if (tile.head < 0) {
          barrier_arrive(&shared.q_full[q.stage]);
        } else {
          barrier_expect(&shared.q_full[q.stage], sizeof(shared.q[0]));
          tma_load(shared.q[q.stage], &q_map, 0, tile.first + tile.tile * F::rows, tile.head * chunks,
                   &shared.q_full[q.stage]);
        }
      }
      if (tile.head < 0) break;
      if (leader) {
        const int key_chunk = (p.query_heads + tile.head / group) * chunks;
        const int value_chunk = key_chunk + p.key_heads * chunks;
        const int keys = min(tile.end - tile.first, (tile.tile + 1) * F::rows);
        const auto load_keys = [&](int block) {
          barrier_wait(&shared.k_empty[k.stage], k.parity ^ 1);
          barrier_expect(&shared.k_full[k.stage], sizeof(shared.k[0]));
          tma_load(shared.k[k.stage], &kv_map, 0, tile.first + block * N, key_chunk, &shared.k_full[k.stage]);
          k.next();
        };
        const auto load_values = [&](int block) {
          barrier_wait(&shared.v_empty[v.stage], v.parity ^ 1);
          barrier_expect(&shared.v_full[v.stage], sizeof(shared.v[0]));
          tma_load(shared.v[v.stage], &kv_map, 0, tile.first + block * N, value_chunk,
                   &shared.v_full[v.stage]);
          v.next();
        };
        int block = (keys - 1) / N;
        load_keys(block);
        for (; block > 0; --block) {
          load_keys(block - 1);
          load_values(block);
        }
        load_values(0);
        index = take_work(p.queue);
      }
      index = __shfl_sync(0xFFFFFFFFU, index, 0);
      q.next();
    }
    if (leader) leave_work(p.queue);
  } else {
    take_registers<F::consumer_registers>();
    const int consumer = warpgroup - 1, lane = threadIdx.x % 32;
    const int my_turn = 1 + consumer, next_turn = 1 + (consumer + 1) % F::consumers;
    const auto release = [&](uint64_t* empty) {
      __syncwarp();
      if (lane == 0) barrier_arrive(empty);
    };
    const auto take_turn = [&] { named_sync(my_turn, 256); };
    const auto end_turn = [&] { named_arrive(next_turn, 256); };
    if (consumer == F::consumers - 1) end_turn();  // the first consumer begins

    StageCursor<F::q_stages> q;
    StageCursor<stages> k, v;
    OnlineSoftmax<N> softmax;
    softmax.scale_log2 = p.scale * 1.4426950408889634F;
    while (true) {
      barrier_wait(&shared.q_full[q.stage], q.parity);
      const PackedTile tile = uniform(shared.tile[q.stage]);
      if (tile.head < 0) break;
      const int first_query = tile.tile * F::rows + consumer * 64;
      const int keys = min(tile.end - tile.first, (tile.tile + 1) * F::rows);
      int block = (keys - 1) / N;

      float s[N / 2], o[D / 2];
      uint32_t probabilities[N / 4];
#pragma unroll
      for (int i = 0; i < D / 2; ++i) o[i] = 0.0F;

      const auto start_scores = [&] {
        const uint64_t a = describe_k_major(&shared.q[q.stage][0][consumer * 64][0]);
        const uint64_t b = describe_k_major(&shared.k[k.stage][0][0][0]);
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
          Wgmma<N>::multiply(s, advance(a, i / 4 * sizeof(shared.q[0][0]) + i % 4 * 32),
                             advance(b, i / 4 * sizeof(shared.k[0][0]) + i % 4 * 32), i > 0);
        }
        wgmma_commit();
      };
      const auto start_values = [&] {
        const uint64_t b = describe_mn_major(&shared.v[v.stage][0][0][0], sizeof(shared.v[0][0]));
#pragma unroll
        for (int i = 0; i < N / 16; ++i) {
          Wgmma<D, false, true>::multiply(o, probabilities + 4 * i, advance(b, i * 2048), true);
        }
        wgmma_commit();
      };
      const auto pack_probabilities = [&] {
#pragma unroll
        for (int i = 0; i < N / 4; ++i) probabilities[i] = pack(s[2 * i], s[2 * i + 1]);
      };

      barrier_wait(&shared.k_full[k.stage], k.parity);
      take_turn();
      wgmma_fence();
      start_scores();
      end_turn();
      wgmma_wait<0>();
      pin(s);
      release(&shared.k_empty[k.stage]);
      k.next();
      softmax.mask(s, first_query - block * N);
      softmax.template step<true, N % F::rows != 0>(s);

      // One step: the scores of `block` start, then the values of the block after it. The products with
      // values still run when a step ends; so the wait for them stands at the beginning of the next, behind
      // the loop's branch, where the compiler does not move it up into the exponentials.
      bool running = false;
      const auto finish_values = [&] {
        wgmma_wait<0>();
        pin(o);
        pin(s);
        if (running) {
          release(&shared.v_empty[v.stage]);
          v.next();
        }
        running = true;
      };
      const auto prepare_values = [&] {
        pack_probabilities();
        if (!__any_sync(0xFFFFFFFFU, softmax.shrink[0] != 1.0F || softmax.shrink[1] != 1.0F)) return;
#pragma unroll
        for (int i = 0; i < D / 2; ++i) o[i] *= softmax.shrink[i / 2 % 2];
      };
      const auto step = [&](auto masked) {
        finish_values();
        prepare_values();
        barrier_wait(&shared.k_full[k.stage], k.parity);
        take_turn();
        wgmma_fence();
        start_scores();
        barrier_wait(&shared.v_full[v.stage], v.parity);
        wgmma_fence();
        start_values();
        end_turn();
        wgmma_wait<1>();
        pin(s);
        release(&shared.k_empty[k.stage]);
        k.next();
        if constexpr (decltype(masked)::value) softmax.mask(s, first_query - block * N);
        softmax.template step<false, decltype(masked)::value>(s);
        pin(s);
      };
      softmax.shrink[0] = softmax.shrink[1] = 1.0F;
      --block;
      // Blocks that reach beyond the first row of the tile.
      if constexpr (N % F::rows != 0)
        for (; block >= 0 && (block + 1) * N > tile.tile * F::rows; --block) step(std::true_type{});
      for (; block >= 0; --block) step(std::false_type{});
      barrier_arrive(&shared.q_empty[q.stage]);
      q.next();

      finish_values();
      prepare_values();
      barrier_wait(&shared.v_full[v.stage], v.parity);
      wgmma_fence();
      start_values();
      wgmma_wait<0>();
      pin(o);
      release(&shared.v_empty[v.stage]);
      v.next();

      float inverse[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float sum = softmax.sum[i];
        sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
        sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
        inverse[i] = 1.0F / sum;
        const int row = tile.first + first_query + product_row() + 8 * i;
        if (row < tile.end && lane % 4 == 0) {
          p.log_sum_exp[row * p.log_sum_exp_stride + tile.head] = softmax.largest[i] * p.scale + logf(sum);
        }
      }
      const int64_t first_row = tile.first + first_query;
      write_product<D>(o, inverse, p.out + first_row * p.out_stride + tile.head * D, p.out_stride,
                       tile.end - static_cast<int>(first_row));
    }
    if (consumer == 0) take_turn();  // the arrival of the last one
  }
}

#else

template <class F>
__global__ void packed_forward_kernel(const __grid_constant__ CUtensorMap q_map,
                                      const __grid_constant__ CUtensorMap kv_map,
                                      const PackedForwardParameters p) {}

#endif

}  // namespace sl::cuda
