#include "kernels/cuda/gemm_few_rows.hpp"

#include <algorithm>
#include <cstdlib>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/gemm_library.hpp"
#include "kernels/cuda/hopper.cuh"

namespace sl {
extern unsigned long long* few_rows_trace;
namespace {

using namespace cuda;

constexpr int block_k = 64;                          // bf16 numbers: 128 bytes, one swizzled row
constexpr int most_stages = 12;
constexpr int staged_tokens = 16, staged_stride = 68;

struct Work {
  int64_t m, n;
  int k_blocks;
  int stages;
  int prefetched;  // k blocks behind the ring to fetch into L2 early
  int trigger;  // -1: at start; 100: at the last issue; else consumers, so many blocks before the end
  bool keep;
  void* out;
  const void* before;  // what beta multiplies
  int64_t out_stride;
  const bf16* bias;
  float alpha, beta;
  bool out_is_f32, wide_stores;
  unsigned long long* trace;
};

struct Barriers {
  uint64_t full[most_stages], empty[most_stages];
};

template <int groups, int tokens>
constexpr int stage_bytes = (64 * groups + tokens) * block_k * 2;
template <int groups>
constexpr int extra_bytes = 1024 + groups * staged_tokens * staged_stride * 4 + static_cast<int>(sizeof(Barriers));

__device__ __forceinline__ unsigned long long now() {
  unsigned long long t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}

#if SL_HOPPER

// Constant numbers, so that the compiler reserves only these barriers.
__device__ __forceinline__ void sync_group(int group) {
  if (group == 0) {
    named_sync(1, 128);
  } else if (group == 1) {
    named_sync(2, 128);
  } else {
    named_sync(3, 128);
  }
}

struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

__device__ __forceinline__ void prefetch_box(const CUtensorMap* map, int column, int row, uint64_t keep) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.L2::cache_hint [%0, {%1, %2}], %3;" ::"l"(map), "r"(column), "r"(row), "l"(keep) : "memory");
}

template <int groups, int tokens>
__device__ void copy_tiles(const Work& work, const CUtensorMap* weights, const CUtensorMap* x, int k_begin, int k_end, int row, char* tiles, Barriers& barriers) {
  constexpr int bytes = stage_bytes<groups, tokens>;
  constexpr int tile_rows = 64 * groups;
  const uint64_t keep = work.keep ? keep_normal : keep_short;
  const int early = min(k_end - k_begin, work.stages);
  // Weights are written by no kernel: the first ones are fetched while the kernel before this one still runs.
  for (int stage = 0; stage < early; ++stage) {
    barrier_expect(&barriers.full[stage], bytes);
    tma_load(tiles + stage * bytes, weights, (k_begin + stage) * block_k, row, &barriers.full[stage], keep);
  }
  for (int k = k_begin + early; k < min(k_end, k_begin + early + work.prefetched); ++k) prefetch_box(weights, k * block_k, row, keep);
  if (work.trigger == 100 && k_end - k_begin == early) start_next();
  unsigned long long t1 = now();
  wait_for_previous();
  if (work.trace) { work.trace[1] = t1; work.trace[2] = now(); }
  Ring ring;
  for (int k = k_begin; k < k_end; ++k) {
    char* stage = tiles + ring.stage * bytes;
    uint64_t* full = &barriers.full[ring.stage];
    if (k - k_begin >= early) {
      barrier_wait(&barriers.empty[ring.stage], ring.phase ^ 1);
      barrier_expect(full, bytes);
      tma_load(stage, weights, k * block_k, row, full, keep);
    }
    tma_load(stage + tile_rows * block_k * 2, x, k * block_k, 0, full, keep_long);
    ring.advance(work.stages);
  }
  if (work.trigger == 100 && k_end - k_begin != early) start_next();
  if (work.trace) work.trace[3] = now();
}

__device__ __forceinline__ void store_at(const void* place, uint32_t rank, float4 value) {
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %0, %1;\n"
      " st.shared::cluster.v4.f32 [remote], {%2, %3, %4, %5};\n}\n" ::"r"(shared_address(place)),
      "r"(rank), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
      : "memory");
}

// One 64 x tokens product of a warpgroup to out, through shared memory so that rows of out are written in
// pieces of 128 bytes at least.
template <int tokens>
__device__ void write_out(const Work& work, const float (&sums)[tokens / 2], float* staged, int first_row, int64_t column0, int group) {
  constexpr int chunk = tokens < staged_tokens ? tokens : staged_tokens;
  const int thread = threadIdx.x % 128;
  const int row = 16 * (thread / 32) + thread % 32 / 4;
  const int token = thread / 8, column = thread % 8 * 8;
#pragma unroll
  for (int first = 0; first < tokens; first += chunk) {
    if (first_row + first >= work.m) break;
    sync_group(group);
#pragma unroll
    for (int j = 0; j < chunk / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        staged[(8 * j + 2 * (thread % 4) + e % 2) * staged_stride + row + e / 2 * 8] = sums[first / 2 + 4 * j + e];
      }
    }
    sync_group(group);
    const int64_t out_row = first_row + first + token;
    const int64_t out_column = column0 + column;
    if (token >= chunk || out_row >= work.m || out_column >= work.n) continue;
    const int count = static_cast<int>(min(int64_t{8}, work.n - out_column));
    const int64_t at = out_row * work.out_stride + out_column;
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = work.alpha * staged[token * staged_stride + column + i];
    if (work.bias != nullptr) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i < count) values[i] += to_float(work.bias[out_column + i]);
      }
    }
    if (work.beta != 0.0F) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i < count) {
          values[i] += work.beta * (work.out_is_f32 ? static_cast<const float*>(work.before)[at + i]
                                                    : to_float(static_cast<const bf16*>(work.before)[at + i]));
        }
      }
    }
    if (work.out_is_f32) {
      float* out = static_cast<float*>(work.out) + at;
      if (work.wide_stores && count == 8) {
        reinterpret_cast<float4*>(out)[0] = make_float4(values[0], values[1], values[2], values[3]);
        reinterpret_cast<float4*>(out)[1] = make_float4(values[4], values[5], values[6], values[7]);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (i < count) out[i] = values[i];
        }
      }
    } else {
      bf16* out = static_cast<bf16*>(work.out) + at;
      if (work.wide_stores && count == 8) {
        *reinterpret_cast<uint4*>(out) = make_uint4(pack(values[0], values[1]), pack(values[2], values[3]),
                                                    pack(values[4], values[5]), pack(values[6], values[7]));
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (i < count) out[i] = from_float<bf16>(values[i]);
        }
      }
    }
  }
}

template <int groups, int tokens, int splits>
__device__ void multiply_tiles(const Work& work, int k_begin, int k_end, int row, char* tiles, float* staged, Barriers& barriers) {
  constexpr int bytes = stage_bytes<groups, tokens>;
  constexpr int tile_rows = 64 * groups;
  constexpr int numbers = tokens / 2;
  const int group = threadIdx.x / 128, thread = threadIdx.x % 128;
  staged += group * staged_tokens * staged_stride;
  Ring ring;
  float sums[numbers];
  int last = -1;
  const int trigger = max(k_begin, k_end - work.trigger);
  for (int k = k_begin; k < k_end; ++k) {
    if (k == trigger && work.trigger >= 0 && threadIdx.x == 0) start_next();
    barrier_wait(&barriers.full[ring.stage], ring.phase);
    if (k == k_begin && work.trace && threadIdx.x == 0) work.trace[6] = now();
    const char* stage = tiles + ring.stage * bytes;
    const uint64_t a = describe_k_major(stage + group * 64 * block_k * 2);
    const uint64_t b = describe_k_major(stage + tile_rows * block_k * 2);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < block_k / 16; ++step) {
      Wgmma<tokens>::multiply(sums, advance(a, 32 * step), advance(b, 32 * step), k > k_begin || step > 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (last >= 0 && thread == 0) barrier_arrive(&barriers.empty[last]);
    last = ring.stage;
    ring.advance(work.stages);
  }
  wgmma_wait<0>();
  pin(sums);
  if (work.trace && threadIdx.x == 0) work.trace[4] = now();
  const int64_t column = row + group * 64;
  if constexpr (splits == 1) {
    write_out<tokens>(work, sums, staged, 0, column, group);
  } else {
    constexpr int finishing = splits == 3 ? 2 : splits;
    constexpr int parts = tokens / 8 < finishing ? tokens / 8 : finishing;  // blocks that finish a share of the tokens each
    constexpr int vectors = numbers / parts / 4;
    const uint32_t rank = cluster_rank();
    float4* received = reinterpret_cast<float4*>(tiles) + threadIdx.x;
    cluster_sync();
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        const float* four = &sums[(part * vectors + v) * 4];
        store_at(received + (rank * vectors + v) * (128 * groups), part, make_float4(four[0], four[1], four[2], four[3]));
      }
    }
    cluster_sync();
    if (rank >= parts) return;
    float totals[vectors * 4];
#pragma unroll
    for (int i = 0; i < vectors * 4; ++i) totals[i] = 0.0F;
#pragma unroll
    for (int from = 0; from < splits; ++from) {
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        const float4 four = received[(from * vectors + v) * (128 * groups)];
        totals[v * 4] += four.x;
        totals[v * 4 + 1] += four.y;
        totals[v * 4 + 2] += four.z;
        totals[v * 4 + 3] += four.w;
      }
    }
    write_out<tokens / parts>(work, totals, staged, static_cast<int>(rank) * (tokens / parts), column, group);
  }
}

#endif

template <int groups, int tokens, int splits>
__global__ __launch_bounds__(128 * groups + 32, tokens <= 64 ? 2 : 1) __cluster_dims__(splits, 1, 1) void few_rows_kernel(
    const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x, const __grid_constant__ Work given) {
  Work work = given;
  if (work.trace) work.trace += 8 * (blockIdx.x + gridDim.x * blockIdx.y);
  if (work.trace && threadIdx.x == 0) { work.trace[0] = now(); unsigned sm; asm("mov.u32 %0, %%smid;" : "=r"(sm)); work.trace[7] = sm; }
#if SL_HOPPER
  extern __shared__ char shared[];
  char* tiles = shared + ((1024 - shared_address(shared) % 1024) & 1023);
  float* staged = reinterpret_cast<float*>(tiles + work.stages * stage_bytes<groups, tokens>);
  Barriers& barriers = *reinterpret_cast<Barriers*>(staged + groups * staged_tokens * staged_stride);
  if (threadIdx.x == 0) {
    prefetch_map(&weights);
    prefetch_map(&x);
    for (int stage = 0; stage < work.stages; ++stage) {
      barrier_init(&barriers.full[stage], 1);
      barrier_init(&barriers.empty[stage], groups);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (work.trigger < 0) start_next();
  const int split = blockIdx.x, row = blockIdx.y * 64 * groups;
  const int k_begin = work.k_blocks * split / splits, k_end = work.k_blocks * (split + 1) / splits;
  if (threadIdx.x >= 128 * groups) {
    if (elect_one()) copy_tiles<groups, tokens>(work, &weights, &x, k_begin, k_end, row, tiles, barriers);
  } else {
    wait_for_previous();
    multiply_tiles<groups, tokens, splits>(work, k_begin, k_end, row, tiles, staged, barriers);
    if (work.trace && threadIdx.x == 0) work.trace[5] = now();
  }
#endif
}

template <int groups, int tokens, int splits>
void run_tile(const Context& context, const Gemm& op, void* out, const FewRowsTuning& tuning) {
  constexpr int tile_rows = 64 * groups;
  const int64_t m = op.a.rows(), n = op.b.rows(), k = op.a.columns();
  Work work = {};
  work.m = m;
  work.n = n;
  work.k_blocks = static_cast<int>(ceil_div(k, block_k));
  work.stages = std::min((tuning.budget * 1024 - extra_bytes<groups>) / stage_bytes<groups, tokens>, most_stages);
  const int64_t blocks = splits * ceil_div(n, tile_rows);
  work.prefetched = static_cast<int>(tuning.prefetch * 1048576 / (blocks * tile_rows * block_k * 2));
  work.trigger = tuning.trigger;
  work.keep = tuning.keep;
  work.out = out;
  work.before = op.out.raw();
  work.out_stride = op.out.row_stride();
  work.bias = op.bias.defined() ? pointer<bf16>(op.bias) : nullptr;
  work.alpha = op.alpha;
  work.beta = op.beta;
  work.out_is_f32 = op.out.dtype() == DType::f32;
  work.wide_stores = mappable(out, op.out.row_stride() * size_of(op.out.dtype()));
  const int shared = work.stages * stage_bytes<groups, tokens> + extra_bytes<groups>;
  if (few_rows_trace) { work.trace = few_rows_trace; few_rows_trace += 8 * 512; }
  const auto kernel = few_rows_kernel<groups, tokens, splits>;
  SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  if (tuning.carve) SL_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
  launch_kernel(context, kernel, dim3(splits, static_cast<uint32_t>(ceil_div(n, tile_rows))), dim3(128 * groups + 32), shared,
                matrix_map(op.b, tile_rows), matrix_map(op.a, tokens), work);
}

template <int groups, int tokens>
void split(const Context& context, const Gemm& op, void* out, const FewRowsTuning& t, int splits) {
  if (splits == 1) run_tile<groups, tokens, 1>(context, op, out, t);
  else if (splits == 2) run_tile<groups, tokens, 2>(context, op, out, t);
  else if (splits == 3) run_tile<groups, tokens, 3>(context, op, out, t);
  else if (splits == 4) run_tile<groups, tokens, 4>(context, op, out, t);
  else run_tile<groups, tokens, 8>(context, op, out, t);
}

}  // namespace

std::vector<FewRowsTuning> few_rows_tunings;
unsigned long long* few_rows_trace = nullptr;

void run_few_rows(const Context& context, const Gemm& op, void* out, int configuration) {
  const int64_t m = op.a.rows();
  FewRowsTuning t = few_rows_tunings.at(configuration);
  if (m > 64) t.budget = std::max(t.budget, 200);
  const bool large = op.b.rows() > 10000;
  int splits = large ? 1 : t.splits, groups = large ? t.groups : t.small_groups;
  if (splits == 0) {
    splits = 1;
    for (int s : {2, 3, 4, 8}) if (s * ceil_div(op.b.rows(), 64 * groups) <= context.cuda->multiprocessors) splits = s;
  }
  while (splits > 1 && op.a.columns() < splits * 64) splits /= 2;
  const auto go = [&](auto g) {
    constexpr int groups = decltype(g)::value;
    if (m <= 8) split<groups, 8>(context, op, out, t, splits);
    else if (m <= 64) split<groups, 64>(context, op, out, t, splits);
    else if (m <= 128) split<groups, 128>(context, op, out, t, splits);
    else split<2, 256>(context, op, out, t, splits);
  };
  if (groups == 2) go(std::integral_constant<int, 2>()); else go(std::integral_constant<int, 3>());
}

}  // namespace sl
