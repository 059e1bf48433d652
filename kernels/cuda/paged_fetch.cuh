// Filling shared memory in the background, with barriers that count: on Hopper by the copy engine, before by
// 16 bytes a lane. The same code drives both; hopper.cuh describes the barriers.
#pragma once

#include <cstdint>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/paged_mma.cuh"

namespace sl::cuda::paged {

// Where a ring of slots stands: which slot is next, and the parity of the phase to wait for.
struct Cursor {
  int slot = 0;
  uint32_t parity;
  __device__ explicit Cursor(uint32_t first_parity) : parity(first_parity) {}
  __device__ void next(int slots) {
    if (++slot == slots) slot = 0, parity ^= 1;
  }
  __device__ void advance(int steps, int slots) {
    slot += steps;
    while (slot >= slots) slot -= slots, parity ^= 1;
  }
};
constexpr uint32_t filling = 1, draining = 0;  // first parity: an empty ring can be filled, not drained

constexpr int part_tokens = 16;  // of a copy: contiguous in a page, and the rows of a product

// Keys and values of all pages as rows of head_dim numbers: row (page * K + head) * G + offset.
struct PageRows {
  CUtensorMap key_map, value_map;  // boxes of a part; Hopper only
  const bf16* keys;
  const bf16* values;
};

#if SL_HOPPER

constexpr int fetch_arrivals = 1;

// Begins a fetch of so many bytes: all lanes call it, then fetch_...(), then end_fetch(). The barrier, of
// fetch_arrivals arrivals, passes when everything is there, and what lane 0 stored to shared memory before.
__device__ inline void begin_fetch(uint64_t* full, uint32_t bytes, int lane) {
  if (lane == 0) barrier_expect(full, bytes);
  __syncwarp();
}
__device__ inline void end_fetch(uint64_t* full) {}

// Lane i copies row i, of a multiple of 8 numbers.
__device__ inline void fetch_rows(uint64_t* full, bf16* shared, int shared_stride, const bf16* rows,
                                  int count, int row_size, int lane) {
  if (lane < count) {
    bulk_load(shared + lane * shared_stride, rows + lane * row_size, row_size * 2, full);
  }
}

// Parts of keys and of values; lane first + i knows the row where part i begins. In shared memory a part is
// head_dim / 64 tiles of 16 rows of 128 bytes; piece c of 16 bytes of row r is at c ^ (r % 8). Read once, so
// they leave the L2 cache first.
template <int head_dim>
__device__ inline void fetch_parts(uint64_t* full, bf16* keys, bf16* values, const PageRows& pages, int row,
                                   int first, int count, int lane) {
  const int part = lane - first;
  if (part >= 0 && part < count) {
    tma_load(keys + part * part_tokens * head_dim, &pages.key_map, 0, row, 0, full, keep_short);
    tma_load(values + part * part_tokens * head_dim, &pages.value_map, 0, row, 0, full, keep_short);
  }
}

#else

constexpr int fetch_arrivals = 33;  // the copies of 32 lanes, and what lane 0 stored itself

__device__ inline void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ inline void fence_barrier_init() {}
__device__ inline void fence_async() {}
__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile(
      "{\n .reg .b64 state;\n mbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(shared_address(barrier))
      : "memory");
}
__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t passed = 0;
  while (passed == 0) {
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(passed)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

__device__ inline void begin_fetch(uint64_t* full, uint32_t bytes, int lane) {
  if (lane == 0) barrier_arrive(full);
}
__device__ inline void end_fetch(uint64_t* full) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(full)) : "memory");
}

__device__ inline void fetch_rows(uint64_t* full, bf16* shared, int shared_stride, const bf16* rows,
                                  int count, int row_size, int lane) {
  for (int i = lane * 8; i < count * row_size; i += 32 * 8) {
    copy_async(shared_address(shared + i / row_size * shared_stride + i % row_size), rows + i, true);
  }
}

template <int head_dim>
__device__ inline void fetch_parts(uint64_t* full, bf16* keys, bf16* values, const PageRows& pages, int row,
                                   int first, int count, int lane) {
  constexpr int pieces = head_dim / 8;
  for (int part = 0; part < count; ++part) {
    const int64_t from = int64_t{__shfl_sync(0xFFFFFFFFU, row, first + part)} * head_dim;
    for (int i = lane; i < part_tokens * pieces; i += 32) {
      const int r = i / pieces, c = i % pieces;
      const int to = part * part_tokens * head_dim + c / 8 * part_tokens * 64 + r * 64 + (c % 8 ^ r % 8) * 8;
      copy_async(shared_address(keys + to), pages.keys + from + i * 8, true);
      copy_async(shared_address(values + to), pages.values + from + i * 8, true);
    }
  }
}

#endif

}  // namespace sl::cuda::paged
