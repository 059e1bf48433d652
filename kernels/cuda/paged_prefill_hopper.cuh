// Attention of prompt chunks on Hopper. The scheme is that of FlashAttention-3 (Shah et al. 2024): a producer
// warp copies tiles (TMA), two consumer warpgroups of 64 pairs multiply (wgmma). In a warpgroup the scores of
// the next tokens are started before the values of the last ones are multiplied, so that softmax runs beside
// products; between the two, named barriers make one start its products when the other has started its own.
//
// What is particular here:
//   - A tile is up to 128 pairs (row, query head) of one key-value head: whole rows with all heads of the
//   group. So
//     a short chunk fills a tile too, and keys are read once for the group.
//   - Keys and values are copied page by page (16 to 128 tokens): lane i of the producer finds and copies
//   part i
//     of a block of 128 tokens.
//   - What lies behind the context in its last page was never written, and may be NaN. Scores are masked;
//   values
//     are multiplied by zero weights, so the producer overwrites those rows with zeros before handing them
//     over.
// Blocks of tokens begin at multiples of 128 and go from the last to the first: a row's bits depend on its
// own context alone (masked scores add exact zeros).
#pragma once

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/paged_fetch.cuh"
#include "kernels/cuda/paged_plan.cuh"

namespace sl::cuda::paged {

struct PrefillHopperArguments {
  const int* query_offsets;
  const int* context_lengths;
  const int* page_tables;
  int64_t table_stride;
  bf16* out;
  int64_t out_stride;
  int* plan;
  int key_heads, group;
  int page_tokens;
  int part_tokens;  // of a copy: divides page_tokens and 128
  float scale;
};

template <int D_>
struct PrefillHopper {
  static constexpr int D = D_, N = 128, consumers = 2, stages = 2;
  static constexpr int threads = 128 * (consumers + 1);
  static constexpr int chunks = D / 64;  // tiles of 64 columns side by side

  // The tile that consumers work on; no blocks beyond the end of work: head is negative.
  struct Tile {
    int first_row, rows;  // of the batch
    int before;           // tokens of the context before the first row
    int head;
  };
  struct Shared {
    alignas(1024) bf16 q[chunks][tile_pairs][64];
    alignas(1024) bf16 k[stages][chunks][N][64];
    alignas(1024) bf16 v[stages][chunks][N][64];
    uint64_t q_full, q_empty, tail_full;
    uint64_t k_full[stages], k_empty[stages], v_full[stages], v_empty[stages];
    Tile tile;  // guarded by the barriers of q
  };
  static constexpr size_t shared_bytes = sizeof(Shared) + 1024;  // the driver aligns to less
};

#if SL_HOPPER

// One warp: finds tiles, keeps Q, K and V on their way.
template <class F>
class PrefillProducer {
  using Shared = typename F::Shared;

 public:
  __device__ PrefillProducer(Shared& shared, const CUtensorMap& q_map, const CUtensorMap& k_map,
                             const CUtensorMap& v_map, const PrefillHopperArguments& arguments)
      : shared_(shared),
        q_map_(q_map),
        k_map_(k_map),
        v_map_(v_map),
        a_(arguments),
        lane_(threadIdx.x % 32) {}

  __device__ void run() {
    const int total = a_.plan[tile_count] * a_.key_heads;
    for (int work = blockIdx.x; work < total;) {
      int next = 0;
      if (lane_ == 0) next = gridDim.x + take_work(a_.plan + prefill_queue);
      const int* record = a_.plan + a_.plan[tiles_begin] + 2 * int64_t{work / a_.key_heads};
      push({record[0], record[1]}, work % a_.key_heads);
      work = __shfl_sync(0xFFFFFFFFU, next, 0);
    }
    if (lane_ == 0) {
      barrier_wait(&shared_.q_empty, q_.parity);
      shared_.tile.head = -1;
      barrier_arrive(&shared_.q_full);
      leave_queue(a_.plan + prefill_queue);
    }
  }

 private:
  __device__ void push(const PrefillTile& piece, int head) {
    const int begin = a_.query_offsets[piece.sequence], end = a_.query_offsets[piece.sequence + 1];
    context_ = a_.context_lengths[piece.sequence];
    table_ = a_.page_tables + piece.sequence * a_.table_stride;
    head_ = head;
    typename F::Tile tile;
    tile.first_row = begin + piece.first_row;
    tile.rows = min(tile_rows(a_.group), end - tile.first_row);
    tile.before = context_ - (end - tile.first_row);
    tile.head = head;
    int block = (max(tile.before + tile.rows, 0) + F::N - 1) / F::N - 1;
    int here = find(block), before = find(block - 1);
    barrier_wait(&shared_.q_empty, q_.parity);
    q_.next(1);
    if (lane_ == 0) {
      shared_.tile = tile;
      barrier_expect(&shared_.q_full, F::chunks * tile_rows(a_.group) * a_.group * 128);
#pragma unroll
      for (int chunk = 0; chunk < F::chunks; ++chunk) {
        tma_load(shared_.q[chunk], &q_map_, 64 * chunk, head * a_.group, tile.first_row, &shared_.q_full);
      }
    }
    if (block < 0) return;
    load_keys(block, here);
    for (; block > 0; --block) {
      const int before_that = find(block - 2);  // comes while we wait
      load_keys(block - 1, before);
      load_values(block, here);
      here = before;
      before = before_that;
    }
    load_values(0, here);
  }

  // Where part `lane` of the block begins, as a row of all pages' keys; negative: there is none.
  __device__ int find(int block) const {
    const int token = block * F::N + lane_ * a_.part_tokens;
    if (block < 0 || lane_ * a_.part_tokens >= F::N || token >= context_) return -1;
    const int page = token / a_.page_tokens;
    return (table_[page] * a_.key_heads + head_) * a_.page_tokens + token - page * a_.page_tokens;
  }

  __device__ void load_keys(int block, int part_row) {
    barrier_wait(&shared_.k_empty[k_.slot], k_.parity);
    copy(part_row, k_map_, shared_.k[k_.slot], &shared_.k_full[k_.slot]);
    k_.next(F::stages);
  }

  __device__ void load_values(int block, int part_row) {
    uint64_t* full = &shared_.v_full[v_.slot];
    barrier_wait(&shared_.v_empty[v_.slot], v_.parity);
    const int valid = context_ - block * F::N;
    if (valid >= F::N) {
      copy(part_row, v_map_, shared_.v[v_.slot], full);
    } else {
      copy(part_row, v_map_, shared_.v[v_.slot], &shared_.tail_full);
      barrier_wait(&shared_.tail_full, tail_.parity);
      tail_.next(1);
      for (int i = valid * 8 + lane_; i < F::N * 8; i += 32) {
#pragma unroll
        for (int chunk = 0; chunk < F::chunks; ++chunk) {
          *reinterpret_cast<uint4*>(&shared_.v[v_.slot][chunk][i / 8][i % 8 * 8]) = make_uint4(0, 0, 0, 0);
        }
      }
      fence_async();
      __syncwarp();
      if (lane_ == 0) barrier_arrive(full);
    }
    v_.next(F::stages);
  }

  // The parts of a block that have tokens.
  __device__ void copy(int part_row, const CUtensorMap& map, bf16 (&to)[F::chunks][F::N][64],
                       uint64_t* full) {
    const unsigned parts = __popc(__ballot_sync(0xFFFFFFFFU, part_row >= 0));
    if (lane_ == 0) barrier_expect(full, parts * a_.part_tokens * F::D * 2);
    __syncwarp();
    if (part_row < 0) return;
#pragma unroll
    for (int chunk = 0; chunk < F::chunks; ++chunk) {
      tma_load(to[chunk][lane_ * a_.part_tokens], &map, 64 * chunk, part_row, full);
    }
  }

  Shared& shared_;
  const CUtensorMap &q_map_, &k_map_, &v_map_;
  const PrefillHopperArguments& a_;
  const int lane_;
  const int* table_ = nullptr;  // of the tile's sequence
  int context_ = 0, head_ = 0;
  Cursor q_{filling}, k_{filling}, v_{filling}, tail_{draining};
};

// Row of the warpgroup's 64 of this thread's first numbers of a product; the others are 8 rows below.
__device__ __forceinline__ int product_row() { return threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4; }

// Softmax of a thread's two rows, block by block; it has a quarter of their columns. Maxima are of unscaled
// scores; the scale is folded into the base-2 exponent.
template <int N>
struct RowSoftmax {
  float scale_log2;
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {},
        shrink[2];  // total: of this thread's columns only

  // Hides columns from visible[i] on.
  __device__ __forceinline__ static void hide(const int (&visible)[2], float (&s)[N / 2]) {
    const int column = 2 * (threadIdx.x % 4);
#pragma unroll
    for (int j = 0; j < N / 2; ++j) {
      if (j / 4 * 8 + j % 2 + column >= visible[j / 2 % 2]) s[j] = -INFINITY;
    }
  }

  // Turns scores into exponentials, adds them up, and says in `shrink` by what earlier sums are to be
  // multiplied. `may_hide`: whole rows may have been hidden so far.
  template <bool may_hide>
  __device__ __forceinline__ void step(float (&s)[N / 2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float highest = largest[i];
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        highest = fmaxf(highest, fmaxf(s[4 * j + 2 * i], s[4 * j + 2 * i + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFFU, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xFFFFFFFFU, highest, 2));
      const bool none = may_hide && highest == -INFINITY;
      shrink[i] = none ? 1.0F : exp2_fast((largest[i] - highest) * scale_log2);
      largest[i] = highest;
      const float subtract = none ? 0.0F : highest * scale_log2;
      float sum = 0.0F;
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[4 * j + 2 * i + e];
          x = exp2_fast(x * scale_log2 - subtract);
          sum += x;
        }
      }
      total[i] = total[i] * shrink[i] + sum;
    }
  }
};

// The four lanes that share rows exchange registers, so that lane l ends with word l of each: a 4 x 4
// transposition, after which each has 16 bytes of a row.
__device__ __forceinline__ void transpose_quad(uint32_t (&word)[4]) {
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFU, odd ? word[i] : word[i + 1], 1);
    (odd ? word[i] : word[i + 1]) = other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFU, upper ? word[i] : word[i + 2], 2);
    (upper ? word[i] : word[i + 2]) = other;
  }
}

template <class F>
__global__ void __launch_bounds__(F::threads, 1)
    prefill_hopper_kernel(const __grid_constant__ CUtensorMap q_map,
                          const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map,
                          const __grid_constant__ PrefillHopperArguments a) {
  constexpr int D = F::D, N = F::N, stages = F::stages;
  extern __shared__ uint8_t shared_bytes[];
  auto& shared = *reinterpret_cast<typename F::Shared*>((reinterpret_cast<uintptr_t>(shared_bytes) + 1023) &
                                                        ~uintptr_t{1023});
  const int warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    prefetch_map(&q_map);
    prefetch_map(&k_map);
    prefetch_map(&v_map);
    constexpr int consumer_warps = 4 * F::consumers;
    barrier_init(&shared.q_full, 1);
    barrier_init(&shared.q_empty, consumer_warps * 32);
    barrier_init(&shared.tail_full, 1);
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
    give_registers<40>();
    if (threadIdx.x < 32) PrefillProducer<F>(shared, q_map, k_map, v_map, a).run();
    return;
  }
  take_registers<232>();
  const int consumer = warpgroup - 1, lane = threadIdx.x % 32;
  const auto release = [&](uint64_t* empty) {
    __syncwarp();
    if (lane == 0) barrier_arrive(empty);
  };
  // Named barriers 1 and 2: whose turn it is to start products.
  const auto take_turn = [&] { named_sync(1 + consumer, 256); };
  const auto end_turn = [&] { named_arrive(2 - consumer, 256); };
  if (consumer == 1) end_turn();  // the first consumer begins

  Cursor q(draining), k(draining), v(draining);
  while (true) {
    barrier_wait(&shared.q_full, q.parity);
    q.next(1);
    const typename F::Tile tile = shared.tile;
    if (tile.head < 0) break;
    int block = (max(tile.before + tile.rows, 0) + N - 1) / N - 1;
    int row[2];  // of the tile, of this thread's two pairs
#pragma unroll
    for (int i = 0; i < 2; ++i) row[i] = (64 * consumer + product_row() + 8 * i) / a.group;

    float s[N / 2], o[D / 2];
    uint32_t probabilities[N / 4];
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] = 0.0F;
    RowSoftmax<N> softmax;
    softmax.scale_log2 = a.scale * log2_e;

    const auto start_scores = [&] {
      const uint64_t q_tile = describe_k_major(&shared.q[0][consumer * 64][0]);
      const uint64_t k_tile = describe_k_major(&shared.k[k.slot][0][0][0]);
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
        Wgmma<N>::multiply(s, advance(q_tile, i / 4 * sizeof(shared.q[0]) + i % 4 * 32),
                           advance(k_tile, i / 4 * sizeof(shared.k[0][0]) + i % 4 * 32), i > 0);
      }
      wgmma_commit();
    };
    const auto start_values = [&] {
      const uint64_t v_tile = describe_mn_major(&shared.v[v.slot][0][0][0], sizeof(shared.v[0][0]));
#pragma unroll
      for (int i = 0; i < N / 16; ++i) {
        Wgmma<D, false, true>::multiply(o, probabilities + 4 * i, advance(v_tile, i * 2048), true);
      }
      wgmma_commit();
    };
    const auto hide = [&] {
      const int before = tile.before - block * N + 1;
      const int visible[2] = {before + row[0], before + row[1]};
      softmax.hide(visible, s);
    };
    const auto prepare_values = [&] {
#pragma unroll
      for (int i = 0; i < N / 4; ++i) probabilities[i] = pack(s[2 * i], s[2 * i + 1]);
      if (!__any_sync(0xFFFFFFFFU, softmax.shrink[0] != 1.0F || softmax.shrink[1] != 1.0F)) return;
#pragma unroll
      for (int i = 0; i < D / 2; ++i) o[i] *= softmax.shrink[i / 2 % 2];
    };

    if (block >= 0) {
      barrier_wait(&shared.k_full[k.slot], k.parity);
      take_turn();
      wgmma_fence();
      start_scores();
      end_turn();
      wgmma_wait<0>();
      pin(s);
      release(&shared.k_empty[k.slot]);
      k.next(stages);
      hide();
      softmax.template step<true>(s);

      // One step: the scores of `block` start, then the values of the block after it. The products with
      // values still run when a step ends; so the wait for them stands at the beginning of the next, behind
      // the loop's branch, where the compiler does not move it up into the exponentials.
      bool running = false;
      const auto finish_values = [&] {
        wgmma_wait<0>();
        pin(o);
        pin(s);
        if (running) {
          release(&shared.v_empty[v.slot]);
          v.next(stages);
        }
        running = true;
      };
      const auto step = [&](auto masked) {
        finish_values();
        prepare_values();
        barrier_wait(&shared.k_full[k.slot], k.parity);
        take_turn();
        wgmma_fence();
        start_scores();
        barrier_wait(&shared.v_full[v.slot], v.parity);
        wgmma_fence();
        start_values();
        end_turn();
        wgmma_wait<1>();
        pin(s);
        release(&shared.k_empty[k.slot]);
        k.next(stages);
        if constexpr (decltype(masked)::value) hide();
        softmax.template step<decltype(masked)::value>(s);
        pin(s);
      };
      --block;
      // Blocks that reach beyond what the first row sees.
      for (; block >= 0 && (block + 1) * N > tile.before + 1; --block) step(std::true_type{});
      for (; block >= 0; --block) step(std::false_type{});
      barrier_arrive(&shared.q_empty);

      finish_values();
      prepare_values();
      barrier_wait(&shared.v_full[v.slot], v.parity);
      wgmma_fence();
      start_values();
      wgmma_wait<0>();
      pin(o);
      release(&shared.v_empty[v.slot]);
      v.next(stages);
    } else {
      barrier_arrive(&shared.q_empty);
    }

#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum = softmax.total[i];
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
      const float inverse = sum == 0.0F ? 0.0F : 1.0F / sum;  // 0: no context
      const int head = 64 * consumer + product_row() + 8 * i - row[i] * a.group;
      bf16* out = a.out + (tile.first_row + row[i]) * a.out_stride + int64_t{tile.head * a.group + head} * D;
#pragma unroll
      for (int j = 0; j < D / 32; ++j) {
        uint32_t words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const int at = (4 * j + w) * 4 + 2 * i;
          words[w] = pack(o[at] * inverse, o[at + 1] * inverse);
        }
        transpose_quad(words);
        if (row[i] < tile.rows) {
          *reinterpret_cast<uint4*>(out + j * 32 + lane % 4 * 8) =
              make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
  }
  if (consumer == 0) take_turn();  // the arrival of the last one
}

#else

template <class F>
__global__ void prefill_hopper_kernel(const __grid_constant__ CUtensorMap q_map,
                                      const __grid_constant__ CUtensorMap k_map,
                                      const __grid_constant__ CUtensorMap v_map,
                                      const __grid_constant__ PrefillHopperArguments a) {}

#endif

}  // namespace sl::cuda::paged
