#include "kernels/cpu/fixed_order.hpp"

#include <algorithm>

#include "kernels/cpu/simd.hpp"

namespace sl {
namespace {

// Tiles that keep their sums in registers: 32 of them with AVX-512, else 16.
constexpr int tile_rows = lanes == 16 ? 6 : 4;
constexpr int tile_columns = lanes == 16 ? 4 : 3;

template <int M, int N>
void dot_tile(ConstRows a, ConstRows b, int64_t k, float alpha, Rows out) {
  Lanes sums[M][N] = {};
  const auto step = [&](const auto& part_of) {
    Lanes bs[N];
    for (int j = 0; j < N; ++j) bs[j] = part_of(b[j]);
    for (int i = 0; i < M; ++i) {
      const Lanes ai = part_of(a[i]);
      for (int j = 0; j < N; ++j) multiply_add(sums[i][j], ai, bs[j]);
    }
  };
  int64_t p = 0;
  for (; p + lanes <= k; p += lanes) {
    // Rows of b are too short for the processor to foresee the next ones: 1.4 times the rate with few rows of
    // a.
    for (int j = 0; j < N; ++j) __builtin_prefetch(b[N + j] + p);
    step([p](const float* row) { return load(row + p); });
  }
  if (p < k) step([p, k](const float* row) { return load_part(row + p, k - p); });
  for (int i = 0; i < M; ++i) {
    float results[N];
    sum_each(sums[i], results);
    for (int j = 0; j < N; ++j) out[i][j] = alpha * results[j];
  }
}

// Calls the tile with the largest M that fits.
template <int M, int N>
void dot_tile_of(int64_t m, ConstRows a, ConstRows b, int64_t k, float alpha, Rows out) {
  if constexpr (M > 1) {
    if (m < M) return dot_tile_of<M - 1, N>(m, a, b, k, alpha, out);
  }
  dot_tile<M, N>(a, b, k, alpha, out);
}

template <int M, int N>
void weighted_tile(ConstRows p, ConstRows v, int64_t n, Rows out) {
  Lanes sums[M][N];
  for (int i = 0; i < M; ++i) {
    for (int d = 0; d < N; ++d) sums[i][d] = load(out[i] + d * lanes);
  }
  for (int64_t j = 0; j < n; ++j) {
    Lanes vs[N];
    for (int d = 0; d < N; ++d) vs[d] = load(v[j] + d * lanes);
    for (int i = 0; i < M; ++i) {
      const Lanes weight = all_lanes(p[i][j]);
      for (int d = 0; d < N; ++d) multiply_add(sums[i][d], weight, vs[d]);
    }
  }
  for (int i = 0; i < M; ++i) {
    for (int d = 0; d < N; ++d) store(out[i] + d * lanes, sums[i][d]);
  }
}

template <int M, int N>
void weighted_tile_of(int64_t m, ConstRows p, ConstRows v, int64_t n, Rows out) {
  if constexpr (M > 1) {
    if (m < M) return weighted_tile_of<M - 1, N>(m, p, v, n, out);
  }
  weighted_tile<M, N>(p, v, n, out);
}

}  // namespace

void dot_products(ConstRows a, int64_t m, ConstRows b, int64_t n, int64_t k, float alpha, Rows out) {
  for (int64_t j = 0; j < n;) {
    const bool whole = n - j >= tile_columns;
    const ConstRows bj{b[j], b.stride};
    for (int64_t i = 0; i < m; i += tile_rows) {
      const ConstRows ai{a[i], a.stride};
      const Rows tile{out[i] + j, out.stride};
      if (whole) {
        dot_tile_of<tile_rows, tile_columns>(m - i, ai, bj, k, alpha, tile);
      } else {
        dot_tile_of<tile_rows, 1>(m - i, ai, bj, k, alpha, tile);
      }
    }
    j += whole ? tile_columns : 1;
  }
}

void add_weighted_rows(ConstRows p, int64_t m, ConstRows v, int64_t n, int64_t width, Rows out) {
  for (int64_t i = 0; i < m; i += tile_rows) {
    const ConstRows pi{p[i], p.stride};
    int64_t d = 0;
    for (; d + tile_columns * lanes <= width; d += tile_columns * lanes)
      weighted_tile_of<tile_rows, tile_columns>(m - i, pi, {v.data + d, v.stride}, n,
                                                {out[i] + d, out.stride});
    for (; d + lanes <= width; d += lanes)
      weighted_tile_of<tile_rows, 1>(m - i, pi, {v.data + d, v.stride}, n, {out[i] + d, out.stride});
    for (; d < width; ++d) {
      for (int64_t row = i; row < std::min(m, i + tile_rows); ++row) {
        for (int64_t j = 0; j < n; ++j) multiply_add(out[row][d], p[row][j], v[j][d]);
      }
    }
  }
}

}  // namespace sl
