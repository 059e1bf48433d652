// The kernel of gemm_few_rows.cu: a block makes a tile of out^T, 64 * groups weight rows by `tokens` rows of
// x. A cluster has `splits` times `sharing` blocks: `splits` blocks of a tile, each of which makes what its
// share of k gives, and the shares are added up; and `sharing` tiles, whose blocks of the same share of k
// fetch a part of x each, for all of them.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/hopper.cuh"

namespace sl::cuda {

constexpr int few_rows_k = 64;            // a block of k: 128 bytes of bf16, one row of a swizzled tile
constexpr int few_rows_most_stages = 12;  // of the ring

struct FewRows {
  int64_t m, n;
  int k_blocks;
  int stages;  // of the ring of tiles in shared memory
  void* out;
  const void* before;  // what beta multiplies; laid out as out
  int64_t out_stride;
  bool out_is_f32;
  bool wide;    // rows of out start at multiples of 16 bytes
  bool mapped;  // out is bf16 and wide, and beta 0: tiles of it go out by the tensor map
  const bf16* bias;
  float alpha, beta;
};

struct FewRowsBarriers {
  uint64_t full[few_rows_most_stages], empty[few_rows_most_stages];
};

// A group's output numbers on their way out: so many tokens at a time, rows padded against bank conflicts.
constexpr int few_rows_staged_tokens = 16, few_rows_staged_stride = 64 + 4;
constexpr int few_rows_staged_floats = few_rows_staged_tokens * few_rows_staged_stride;

// Shared memory: the ring of tiles, the staged numbers, the barriers.
constexpr int few_rows_stage_bytes(int groups, int tokens) { return (64 * groups + tokens) * few_rows_k * 2; }
constexpr int few_rows_other_bytes(int groups) {
  constexpr int alignment = 1024;  // of the ring
  return alignment + groups * few_rows_staged_floats * 4 + static_cast<int>(sizeof(FewRowsBarriers));
}

// Blocks of a cluster that finish a share of the tile's tokens each; a share is a multiple of 8 tokens.
constexpr int few_rows_parts(int tokens, int splits) {
  const int finishing = splits == 3 ? 2 : splits;
  return tokens / 8 < finishing ? tokens / 8 : finishing;
}
// What a block of a cluster receives from all of them, in the ring's place.
constexpr int few_rows_exchange_bytes(int groups, int tokens, int splits) {
  return splits == 1 ? 0 : splits * 64 * groups * (tokens / few_rows_parts(tokens, splits)) * 4;
}

#if SL_HOPPER

struct RingPlace {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void advance(int stages) {
    if (++stage < stages) return;
    stage = 0;
    phase ^= 1;
  }
};

// A block's place in its cluster.
template <int splits, int sharing>
struct ClusterPlace {
  uint32_t split = 0, tile = 0;
  static __device__ ClusterPlace here() {
    if constexpr (splits * sharing == 1) return {};
    const uint32_t rank = cluster_rank();
    return {rank % splits, rank / splits};
  }
  // Of the block that has another share of k, or another tile.
  __device__ uint32_t rank_of_split(uint32_t other) const { return tile * splits + other; }
  __device__ uint32_t rank_of_tile(uint32_t other) const { return other * splits + split; }
};

// The copying thread: weight and x tiles of the k blocks into the ring. Weights are written by no kernel in
// flight (gemm_few_rows.hpp): the first ones are fetched while the kernel before this one still runs.
template <int groups, int tokens, int splits, int sharing>
__device__ void copy_tiles(const FewRows& work, const CUtensorMap* weights, const CUtensorMap* x, int k_begin,
                           int k_end, int row, ClusterPlace<splits, sharing> place, char* ring,
                           FewRowsBarriers& barriers) {
  constexpr int bytes = few_rows_stage_bytes(groups, tokens);
  constexpr int weight_bytes = 64 * groups * few_rows_k * 2;
  constexpr int part_tokens = tokens / sharing;
  const int first_token = static_cast<int>(place.tile) * part_tokens;
  uint16_t sharers = 0;
#pragma unroll
  for (uint32_t tile = 0; tile < sharing; ++tile)
    sharers |= static_cast<uint16_t>(1U << place.rank_of_tile(tile));
  const int ahead = min(k_begin + work.stages, k_end);
  for (int k = k_begin; k < ahead; ++k) {
    uint64_t* full = &barriers.full[k - k_begin];
    barrier_expect(full, bytes);
    tma_load(ring + (k - k_begin) * bytes, weights, k * few_rows_k, row, full, keep_short);
  }
  wait_for_previous();
  RingPlace at;
  for (int k = k_begin; k < k_end; ++k) {
    char* stage = ring + at.stage * bytes;
    uint64_t* full = &barriers.full[at.stage];
    if (k >= ahead) {
      barrier_wait(&barriers.empty[at.stage], at.phase ^ 1);
      barrier_expect(full, bytes);
      tma_load(stage, weights, k * few_rows_k, row, full, keep_short);
    }
    char* const x_part = stage + weight_bytes + first_token * few_rows_k * 2;
    if constexpr (sharing == 1) {
      tma_load(x_part, x, k * few_rows_k, 0, full, keep_long);
    } else {
      tma_load_to_all(x_part, x, k * few_rows_k, first_token, full, sharers, keep_long);
    }
    at.advance(work.stages);
  }
}

// A group is done with a stage: all who copy into it are told.
template <int splits, int sharing>
__device__ __forceinline__ void release_stage(ClusterPlace<splits, sharing> place, uint64_t* empty) {
  if constexpr (sharing == 1) {
    barrier_arrive(empty);
  } else {
#pragma unroll
    for (uint32_t tile = 0; tile < sharing; ++tile) barrier_arrive_at(empty, place.rank_of_tile(tile));
  }
}

// The threads of a group wait for each other. Constant numbers, so that only these barriers are reserved.
__device__ __forceinline__ void sync_group(int group) {
  if (group == 0) {
    named_sync(1, 128);
  } else if (group == 1) {
    named_sync(2, 128);
  } else {
    named_sync(3, 128);
  }
}

// Products of a row of x with 8 weight rows, to out.
__device__ __forceinline__ void finish_numbers(const FewRows& work, int64_t row, int64_t column,
                                               float (&values)[8]) {
  const int64_t at = row * work.out_stride + column;
  const int count = static_cast<int>(min(int64_t{8}, work.n - column));
  const bool whole = work.wide && count == 8;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    values[i] *= work.alpha;
    if (i >= count) continue;
    if (work.bias != nullptr) values[i] += to_float(work.bias[column + i]);
    if (work.beta == 0.0F) continue;
    values[i] += work.beta * (work.out_is_f32 ? static_cast<const float*>(work.before)[at + i]
                                              : to_float(static_cast<const bf16*>(work.before)[at + i]));
  }
  if (work.out_is_f32) {
    float* out = static_cast<float*>(work.out) + at;
    if (whole) {
      reinterpret_cast<float4*>(out)[0] = make_float4(values[0], values[1], values[2], values[3]);
      reinterpret_cast<float4*>(out)[1] = make_float4(values[4], values[5], values[6], values[7]);
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) out[i] = values[i];
    }
  } else {
    bf16* out = static_cast<bf16*>(work.out) + at;
    if (whole) {
      *reinterpret_cast<uint4*>(out) = make_uint4(pack(values[0], values[1]), pack(values[2], values[3]),
                                                  pack(values[4], values[5]), pack(values[6], values[7]));
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) out[i] = from_float<bf16>(values[i]);
    }
  }
}

// A group's 64 x count numbers, as a product of a warpgroup leaves them, to rows first_row .. of out.
// Through shared memory, so that a row of out is written 128 bytes at a time at least.
template <int count>
__device__ __forceinline__ void write_out(const FewRows& work, const float (&sums)[count / 2], float* staged,
                                          int first_row, int64_t first_column, int group) {
  constexpr int step = count < few_rows_staged_tokens ? count : few_rows_staged_tokens;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int sum_row = 16 * (thread / 32) + thread % 32 / 4, sum_token = 2 * (thread % 4);
  const int token = thread / 8, column = thread % 8 * 8;
#pragma unroll
  for (int first = 0; first < count; first += step) {
    if (first_row + first >= work.m) break;
    sync_group(group);
#pragma unroll
    for (int i = 0; i < step / 2; ++i) {
      const int at = sum_token + i / 4 * 8 + i % 2;
      staged[at * few_rows_staged_stride + sum_row + i / 2 % 2 * 8] = sums[first / 2 + i];
    }
    sync_group(group);
    const int64_t row = first_row + first + token;
    if (token >= step || row >= work.m || first_column + column >= work.n) continue;
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = staged[token * few_rows_staged_stride + column + i];
    finish_numbers(work, row, first_column + column, values);
  }
}

// The same for an `out` that is mapped: transposed in shared memory at `tiles` (of the whole block, count *
// 128 bytes a group), from there by one bulk store.
template <int count>
__device__ __forceinline__ void store_out(const FewRows& work, const CUtensorMap* out,
                                          float (&sums)[count / 2], char* tiles, int first_row,
                                          int64_t first_column, int group) {
  static_assert(count % 16 == 0);
  char* tile = tiles + group * count * 128;
  const int warp = static_cast<int>(threadIdx.x) % 128 / 32, lane = static_cast<int>(threadIdx.x) % 32;
  float added[2] = {};
  if (work.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t column = first_column + 16 * warp + lane / 4 + 8 * i;
      if (column < work.n) added[i] = to_float(work.bias[column]);
    }
  }
  const int token = lane / 16 * 8 + lane % 8;  // of 16; the swizzle depends on token % 8
  char* place = tile + token * 128 + ((2 * warp + lane / 8 % 2) ^ (lane % 8)) * 16;
#pragma unroll
  for (int j = 0; j < count / 8; j += 2) {
    uint32_t packed[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float* two = &sums[4 * j + 2 * q];
      packed[q] = pack(two[0] * work.alpha + added[q % 2], two[1] * work.alpha + added[q % 2]);
    }
    store_transposed(place + j * 8 * 128, packed[0], packed[1], packed[2], packed[3]);
  }
  fence_async();
  sync_group(group);
  if (threadIdx.x % 128 == 0 && first_column < work.n && first_row < work.m) {
    tma_store(out, tile, static_cast<int>(first_column), first_row);
    bulk_stores_read();
  }
}

// To the same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ void store_at(float4* place, uint32_t rank, float4 value) {
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %0, %1;\n"
      " st.shared::cluster.v4.f32 [remote], {%2, %3, %4, %5};\n}\n" ::"r"(shared_address(place)),
      "r"(rank), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
      : "memory");
}

// Adds up over the blocks of a tile, in the order of their shares of k, and writes the block's share of the
// tokens.
template <int groups, int tokens, int splits, int sharing>
__device__ __forceinline__ void finish_shares(const FewRows& work, const CUtensorMap* out,
                                              const float (&sums)[tokens / 2],
                                              ClusterPlace<splits, sharing> place, char* ring, float* staged,
                                              int64_t column, int group) {
  constexpr int parts = few_rows_parts(tokens, splits);
  constexpr int numbers = tokens / 2 / parts;  // of a thread, in a part
  constexpr int vectors = numbers / 4;
  constexpr int threads = 128 * groups;
  float4* received = reinterpret_cast<float4*>(ring) + threadIdx.x;
  cluster_sync();  // everybody is done with its ring
#pragma unroll
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const float* four = &sums[part * numbers + v * 4];
      store_at(received + (place.split * vectors + v) * threads, place.rank_of_split(part),
               make_float4(four[0], four[1], four[2], four[3]));
    }
  }
  cluster_sync();
  if (place.split >= parts) return;
  float totals[numbers];
#pragma unroll
  for (int i = 0; i < numbers; ++i) totals[i] = 0.0F;
#pragma unroll
  for (int from = 0; from < splits; ++from) {
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const float4 four = received[(from * vectors + v) * threads];
      totals[v * 4] += four.x;
      totals[v * 4 + 1] += four.y;
      totals[v * 4 + 2] += four.z;
      totals[v * 4 + 3] += four.w;
    }
  }
  constexpr int count = tokens / parts;
  const int first_row = static_cast<int>(place.split) * count;
  if constexpr (count % 16 == 0) {
    if (work.mapped) {
      char* tiles = ring + few_rows_exchange_bytes(groups, tokens, splits);
      return store_out<count>(work, out, totals, tiles, first_row, column, group);
    }
  }
  write_out<count>(work, totals, staged, first_row, column, group);
}

template <int groups, int tokens, int splits, int sharing>
__device__ void multiply_tiles(const FewRows& work, const CUtensorMap* out, int k_begin, int k_end, int row,
                               ClusterPlace<splits, sharing> place, char* ring, float* staged,
                               FewRowsBarriers& barriers) {
  constexpr int bytes = few_rows_stage_bytes(groups, tokens);
  const int group = static_cast<int>(threadIdx.x) / 128;
  const bool first_thread = threadIdx.x % 128 == 0;
  staged += group * few_rows_staged_floats;
  RingPlace at;
  float sums[tokens / 2];
  int used = -1;  // the stage whose products may still run
  for (int k = k_begin; k < k_end; ++k) {
    barrier_wait(&barriers.full[at.stage], at.phase);
    const char* stage = ring + at.stage * bytes;
    const uint64_t a = describe_k_major(stage + group * 64 * few_rows_k * 2);
    const uint64_t b = describe_k_major(stage + groups * 64 * few_rows_k * 2);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < few_rows_k / 16; ++step) {
      Wgmma<tokens>::multiply(sums, advance(a, 32 * step), advance(b, 32 * step), k > k_begin || step > 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (used >= 0 && first_thread) release_stage(place, &barriers.empty[used]);
    used = at.stage;
    at.advance(work.stages);
  }
  wgmma_wait<0>();
  pin(sums);
  const int64_t column = row + group * 64;
  if constexpr (splits > 1) {
    finish_shares<groups, tokens>(work, out, sums, place, ring, staged, column, group);
  } else {
    if constexpr (sharing > 1) cluster_arrive();
    bool stored = false;
    if constexpr (tokens % 16 == 0) {
      if (work.mapped) {
        named_sync(4, 128 * groups);  // no group reads the ring any more
        store_out<tokens>(work, out, sums, ring, 0, column, group);
        stored = true;
      }
    }
    if (!stored) write_out<tokens>(work, sums, staged, 0, column, group);
    // Who copies into another block's ring, or arrives at its barriers, must find it there.
    if constexpr (sharing > 1) cluster_wait();
  }
}

#endif  // SL_HOPPER

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SL_CLUSTER(splits, tiles) __cluster_dims__(splits, tiles, 1)
#else
#define SL_CLUSTER(splits, tiles)
#endif

// Grid: (splits, tiles). The last warp copies; each group of 128 threads multiplies 64 weight rows.
template <int groups, int tokens, int splits, int sharing>
__global__ __launch_bounds__(128 * groups + 32, tokens <= 64 ? 2 : 1)
    SL_CLUSTER(splits, sharing) void few_rows_kernel(const __grid_constant__ CUtensorMap weights,
                                                     const __grid_constant__ CUtensorMap x,
                                                     const __grid_constant__ CUtensorMap out,
                                                     const __grid_constant__ FewRows work) {
#if SL_HOPPER
  extern __shared__ char shared[];
  char* ring = shared + (1024 - shared_address(shared) % 1024) % 1024;
  float* staged = reinterpret_cast<float*>(ring + work.stages * few_rows_stage_bytes(groups, tokens));
  auto& barriers = *reinterpret_cast<FewRowsBarriers*>(staged + groups * few_rows_staged_floats);
  if (threadIdx.x == 0) {
    prefetch_map(&weights);
    prefetch_map(&x);
    for (int stage = 0; stage < work.stages; ++stage) {
      barrier_init(&barriers.full[stage], 1);
      barrier_init(&barriers.empty[stage], groups * sharing);
    }
    fence_barrier_init();
  }
  if constexpr (sharing == 1) {
    __syncthreads();
  } else {
    cluster_sync();  // other blocks arrive at these barriers too
  }
  start_next();
  const auto place = ClusterPlace<splits, sharing>::here();
  const int split = static_cast<int>(place.split);
  const int row = static_cast<int>(blockIdx.y) * 64 * groups;
  const int k_begin = work.k_blocks * split / splits, k_end = work.k_blocks * (split + 1) / splits;
  if (threadIdx.x >= 128 * groups) {
    if (elect_one()) {
      copy_tiles<groups, tokens>(work, &weights, &x, k_begin, k_end, row, place, ring, barriers);
    }
  } else {
    wait_for_previous();
    multiply_tiles<groups, tokens>(work, &out, k_begin, k_end, row, place, ring, staged, barriers);
  }
#endif
}

#undef SL_CLUSTER

}  // namespace sl::cuda
