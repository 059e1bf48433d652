// What only Hopper (sm_90a) has, one thin function an instruction: barriers in shared memory that count bytes
// (mbarrier), bulk tensor copies (TMA) and the maps they need, matrix products of a warpgroup (wgmma),
// registers handed from one warpgroup to another (setmaxnreg), clusters. Words of the PTX manual, our names.
//
// The usual shape of a kernel: one thread waits until a stage of shared memory is empty, announces the bytes
// (barrier_expect) and starts a copy (tma_load); 128 threads (4 warps, the first a multiple of 4) wait until
// it is full (barrier_wait), multiply (wgmma_fence, wgmma..., wgmma_commit, wgmma_wait) and arrive at
// "empty". Tiles lie in shared memory as the copy with 128-byte swizzle leaves them: rows of 64 bf16 (128
// bytes), the tile's address a multiple of 1024 bytes. Only such tiles are described here.
//
// The device functions below need sm_90a; a file that is also compiled for sm_80 puts the kernels that call
// them inside `#if SL_HOPPER`.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "core/error.hpp"
#include "core/tensor.hpp"
#include "kernels/cuda/state.hpp"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SL_HOPPER 1
#else
#define SL_HOPPER 0
#endif

namespace sl::cuda {

// ---- Tensor maps (host) ----

// One dimension of an array in device memory, and of the box that a copy moves. The first dimension is dense
// and has no stride.
struct MapDimension {
  int64_t size;
  int64_t box;
  int64_t stride_bytes = 0;  // between neighbours; a multiple of 16
};

// True when a bf16 matrix can be read and written by tensor maps (and by accesses of 16 bytes).
inline bool mappable(const void* data, int64_t row_stride_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row_stride_bytes % 16 == 0;
}

// The map of an array of bf16 numbers, first dimension first. What lies outside reads as 0 and is not
// written. A kernel takes it as `const __grid_constant__ CUtensorMap`.
inline CUtensorMap make_tensor_map(const void* data, std::initializer_list<MapDimension> dimensions,
                                   CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  // Asked of the runtime, so that the program does not link the driver's library.
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    SL_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                             &found));
    if (found != cudaDriverEntryPointSuccess)
      throw LibraryError("CUDA", "cudaGetDriverEntryPointByVersion",
                         "no cuTensorMapEncodeTiled in this driver");
    return reinterpret_cast<Encode>(function);
  }();
  constexpr int max_rank = 5;
  cuuint64_t sizes[max_rank], strides[max_rank];
  cuuint32_t boxes[max_rank], steps[max_rank];
  cuuint32_t rank = 0;
  for (const MapDimension& dimension : dimensions) {
    require(rank < max_rank, "a tensor map has at most 5 dimensions");
    sizes[rank] = static_cast<cuuint64_t>(dimension.size);
    boxes[rank] = static_cast<cuuint32_t>(dimension.box);
    steps[rank] = 1;
    if (rank > 0) strides[rank - 1] = static_cast<cuuint64_t>(dimension.stride_bytes);
    ++rank;
  }
  CUtensorMap map;
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, const_cast<void*>(data), sizes,
                                 strides, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw LibraryError("CUDA", "cuTensorMapEncodeTiled", "error " + std::to_string(static_cast<int>(result)));
  return map;
}

// The map of a bf16 matrix for boxes of box_rows (at most 256) x 64 columns: coordinates (column, row).
inline CUtensorMap matrix_map(const Tensor& matrix, int64_t box_rows) {
  return make_tensor_map(matrix.raw(),
                         {{matrix.columns(), 64}, {matrix.rows(), box_rows, matrix.row_stride() * 2}});
}

#if SL_HOPPER

// ---- Addresses, single threads, registers, named barriers ----

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The value of lane 0, which the compiler then knows to be the same in the whole warp. What addresses of
// tiles are computed from should be: wgmma takes them from uniform registers, and moving them there costs.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xFFFFFFFFU, x, 0); }

// True for one lane of the (whole) warp.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile("{\n .reg .pred p;\n elect.sync _|p, 0xffffffff;\n selp.u32 %0, 1, 0, p;\n}\n"
               : "=r"(elected));
  return elected != 0;
}

// All four warps of the warpgroup call it. Needs __launch_bounds__(threads, 1).
template <int registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

// Barriers 1 .. 15 (0 is __syncthreads). `threads` counts those that sync and those that only arrive.
__device__ __forceinline__ void named_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Makes ordinary writes to shared memory visible to the copy engine and to wgmma; before the barrier.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Barriers in shared memory ----
//
// A barrier's phase ends when `arrivals` threads have arrived and all announced bytes have landed. Waiting
// for parity p returns once the phase of that parity has ended: a fresh barrier is in phase 0, so wait(1)
// returns at once. What ordinary instructions read or write, every lane guards with its own arrival; for what
// only products and copies touch, one lane arrives after __syncwarp(). Both are right, but racecheck follows
// only the first (doc/performance.md).

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
// After the last init, before the barrier between threads that lets others use them.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// At the barrier in the same place of block `rank` of the cluster. Orders nothing between the blocks: for
// stages that are only read by products, which have ended. (release.cluster costs a microsecond.)
__device__ __forceinline__ void barrier_arrive_at(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %0, %1;\n"
      " mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
// Arrives, and announces bytes that copies will bring.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ bool barrier_passed(uint64_t* barrier, uint32_t parity) {
  uint32_t passed;
  asm volatile(
      "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}\n"
      : "=r"(passed)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return passed != 0;
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  while (!barrier_passed(barrier, parity)) {
  }
}

// ---- Bulk copies ----

// How long the L2 cache should keep what is copied.
constexpr uint64_t keep_normal = 0x1000000000000000ULL;
constexpr uint64_t keep_short = 0x12F0000000000000ULL;  // read once: evicted first
constexpr uint64_t keep_long = 0x14F0000000000000ULL;   // read again soon: evicted last

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Box at (column, row) into shared memory; its bytes arrive at `full`.
__device__ __forceinline__ void tma_load(void* shared, const CUtensorMap* map, int column, int row,
                                         uint64_t* full, uint64_t keep = keep_normal) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(shared)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(full)), "l"(keep)
      : "memory");
}
// The same into the same place of every block of the cluster whose bit is set in `ranks`; the bytes arrive at
// each one's `full`.
__device__ __forceinline__ void tma_load_to_all(void* shared, const CUtensorMap* map, int column, int row,
                                                uint64_t* full, uint16_t ranks, uint64_t keep = keep_normal) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(shared_address(shared)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(full)), "h"(ranks), "l"(keep)
      : "memory");
}
__device__ __forceinline__ void tma_load(void* shared, const CUtensorMap* map, int c0, int c1, int c2,
                                         uint64_t* full, uint64_t keep = keep_normal) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(shared)),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(shared_address(full)), "l"(keep)
      : "memory");
}
// `bytes` (a multiple of 16; both addresses too) of plain memory.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* full,
                                          uint64_t keep = keep_normal) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(full)), "l"(keep)
      : "memory");
}

// A tile from shared memory to the place (column, row) of a map; what lies outside is not written. Before it,
// fence_async() by the writing threads and a barrier. The tile stays until bulk_stores_read().
__device__ __forceinline__ void tma_store(const CUtensorMap* map, const void* shared, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
               "r"(column), "r"(row), "r"(shared_address(shared))
               : "memory");
}
// Waits until the stores of this thread have read shared memory.
__device__ __forceinline__ void bulk_stores_read() {
  asm volatile("cp.async.bulk.commit_group;\n cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Four 8 x 8 matrices of bf16 pairs, as a product's accumulators hold them, to shared memory transposed: lane
// 8 i + r gives the place of row r of matrix i (16 bytes).
__device__ __forceinline__ void store_transposed(void* row, uint32_t m0, uint32_t m1, uint32_t m2,
                                                 uint32_t m3) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
      "r"(m0), "r"(m1), "r"(m2), "r"(m3)
      : "memory");
}

// ---- Clusters ----

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
// ---- Products of a warpgroup ----
//
// d (64 x N, f32) = a (64 x 16) b (16 x N) + d. Thread t of the 128 holds as d[4 j + 2 i + e] element
// (16 (t / 32) + t % 32 / 4 + 8 i, 8 j + 2 (t % 4) + e). Reading `d` before wgmma_wait is wrong.

// Before the first product after registers (a or d) were written by other instructions.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most `pending` committed groups run.
template <int pending = 0>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Keeps the compiler from moving uses of these registers across this point.
template <typename T, int count>
__device__ __forceinline__ void pin(T (&registers)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      asm volatile("" : "+f"(registers[i])::"memory");
    } else {
      asm volatile("" : "+r"(registers[i])::"memory");
    }
  }
}

// Describe tiles of 128-byte rows to wgmma. `k major`: a row is one m (or n), 64 k wide; the next 16 k are 32
// bytes on, the next 64 k another tile. `mn major` (transposed): a row is one k, 64 m (or n) wide; the next
// 16 k are 2048 bytes on, the next 64 m (or n) `next_tile` bytes on. Add bytes with advance().
__device__ __forceinline__ uint64_t describe_mn_major(const void* tile, uint32_t next_tile) {
  constexpr uint64_t swizzle_128 = uint64_t{1} << 62, eight_rows = uint64_t{1024 >> 4} << 32;
  return swizzle_128 | eight_rows | (next_tile >> 4 << 16 | (shared_address(tile) & 0x3FFFFU) >> 4);
}
__device__ __forceinline__ uint64_t describe_k_major(const void* tile) { return describe_mn_major(tile, 16); }
// Only the low half is added to: no carry can arise, and the high half stays a constant.
__device__ __forceinline__ uint64_t advance(uint64_t description, uint32_t bytes) {
  return (description & 0xFFFFFFFF00000000U) | (static_cast<uint32_t>(description) + (bytes >> 4));
}

// Wgmma<N>::multiply(d, a, b, accumulate): with a in shared memory (a description) or in registers (as d of a
// product before, two numbers a register: see pack), b in shared memory. Without `accumulate`, d = a b.
// transpose_a, transpose_b: that operand is mn major.
template <int N, bool transpose_a = false, bool transpose_b = false>
struct Wgmma;

// The numbers of the operands d of an instruction, and the operands themselves, 4 at a time.
#define SL_N4 "%0, %1, %2, %3"
#define SL_N8 SL_N4 ", %4, %5, %6, %7"
#define SL_N12 SL_N8 ", %8, %9, %10, %11"
#define SL_N16 SL_N12 ", %12, %13, %14, %15"
#define SL_N20 SL_N16 ", %16, %17, %18, %19"
#define SL_N24 SL_N20 ", %20, %21, %22, %23"
#define SL_N32 SL_N24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SL_N40 SL_N32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SL_N48 SL_N40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define SL_N56 SL_N48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define SL_N64 SL_N56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define SL_N72 SL_N64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define SL_N80 SL_N72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define SL_N88 SL_N80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define SL_N96 SL_N88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define SL_N104 SL_N96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define SL_N112 SL_N104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define SL_N120 SL_N112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define SL_N128 SL_N120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define SL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SL_D8(i) SL_D4(i), SL_D4(i + 4)
#define SL_D12(i) SL_D8(i), SL_D4(i + 8)
#define SL_D16(i) SL_D8(i), SL_D8(i + 8)
#define SL_D20(i) SL_D16(i), SL_D4(i + 16)
#define SL_D24(i) SL_D16(i), SL_D8(i + 16)
#define SL_D32(i) SL_D16(i), SL_D16(i + 16)
#define SL_D40(i) SL_D32(i), SL_D8(i + 32)
#define SL_D48(i) SL_D32(i), SL_D16(i + 32)
#define SL_D56(i) SL_D48(i), SL_D8(i + 48)
#define SL_D64(i) SL_D32(i), SL_D32(i + 32)
#define SL_D72(i) SL_D64(i), SL_D8(i + 64)
#define SL_D80(i) SL_D64(i), SL_D16(i + 64)
#define SL_D88(i) SL_D80(i), SL_D8(i + 80)
#define SL_D96(i) SL_D64(i), SL_D32(i + 64)
#define SL_D128(i) SL_D64(i), SL_D64(i + 64)

// N columns, R = N / 2 registers; p0 .. p7 are R .. R + 7, the numbers of the operands after d.
#define SL_WGMMA(N, R, p0, p1, p2, p3, p4, p5, p6, p7)                                                      \
  template <bool transpose_a, bool transpose_b>                                                             \
  struct Wgmma<N, transpose_a, transpose_b> {                                                               \
    static __device__ __forceinline__ void multiply(float (&d)[R], uint64_t a, uint64_t b,                  \
                                                    bool accumulate) {                                      \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #p2 ", 0;\n wgmma.mma_async.sync.aligned.m64n" #N \
                   "k16.f32.bf16.bf16 {" SL_N##R "}, %" #p0 ", %" #p1 ", p, 1, 1, %" #p3 ", %" #p4 ";\n}\n" \
                   : SL_D##R(0)                                                                             \
                   : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(transpose_a)), \
                     "n"(static_cast<int>(transpose_b)));                                                   \
    }                                                                                                       \
    static __device__ __forceinline__ void multiply(float (&d)[R], const uint32_t* a, uint64_t b,           \
                                                    bool accumulate) {                                      \
      static_assert(!transpose_a, "in registers a is not transposed");                                      \
      asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %" #p5 ", 0;\n wgmma.mma_async.sync.aligned.m64n" #N \
                   "k16.f32.bf16.bf16 {" SL_N##R "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4       \
                                                 ", p, 1, 1, %" #p6 ";\n}\n"                                \
                   : SL_D##R(0)                                                                             \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)), \
                     "n"(static_cast<int>(transpose_b)));                                                   \
    }                                                                                                       \
  };
SL_WGMMA(8, 4, 4, 5, 6, 7, 8, 9, 10, 11)
SL_WGMMA(16, 8, 8, 9, 10, 11, 12, 13, 14, 15)
SL_WGMMA(24, 12, 12, 13, 14, 15, 16, 17, 18, 19)
SL_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22, 23)
SL_WGMMA(40, 20, 20, 21, 22, 23, 24, 25, 26, 27)
SL_WGMMA(48, 24, 24, 25, 26, 27, 28, 29, 30, 31)
SL_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38, 39)
SL_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46, 47)
SL_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54, 55)
SL_WGMMA(112, 56, 56, 57, 58, 59, 60, 61, 62, 63)
SL_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70, 71)
SL_WGMMA(144, 72, 72, 73, 74, 75, 76, 77, 78, 79)
SL_WGMMA(160, 80, 80, 81, 82, 83, 84, 85, 86, 87)
SL_WGMMA(176, 88, 88, 89, 90, 91, 92, 93, 94, 95)
SL_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102, 103)
SL_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134, 135)
#undef SL_WGMMA

// Two neighbours of d as one register of a.
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

#endif  // SL_HOPPER

}  // namespace sl::cuda
