// The inner loops of linear on the host: products of a few rows with four outputs at a time.
#pragma once

#include <utility>

#include "core/factors.h"
#include "ops/linear.h"

namespace eet {

constexpr int kTileOuts = 4;

// Rows whose sums fit into the vector registers, of which there are 32 or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 2;
#endif

// Sums of a tile, lane by lane. Each one's order is that of the columns, whatever the tile, so that
// an output's bits do not depend on how it is computed.
template <int kRows>
using TileSums = Floats[kRows][kTileOuts];

template <int kRows, typename F>
__attribute__((always_inline)) inline void AddProducts(const F* x, int64_t stride,
                                                       const Factors<F> (&kernel)[kTileOuts],
                                                       TileSums<kRows>& sums) {
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
    const Factors<F> values = LoadFactors(x + row * stride);
#pragma GCC unroll 4
    for (int out = 0; out < kTileOuts; ++out) {
      sums[row][out] = MultiplyAdd(sums[row][out], values, kernel[out]);
    }
  }
}

typedef float Four __attribute__((vector_size(4 * sizeof(float))));
typedef float Eight __attribute__((vector_size(8 * sizeof(float))));
typedef float Sixteen __attribute__((vector_size(16 * sizeof(float))));

// Lanes folded by halves until four are left.
inline Four FoldToFour(Four sum) { return sum; }

inline Four FoldToFour(Eight sum) {
  return __builtin_shufflevector(sum, sum, 0, 1, 2, 3) +
         __builtin_shufflevector(sum, sum, 4, 5, 6, 7);
}

inline Four FoldToFour(Sixteen sum) {
  return FoldToFour(__builtin_shufflevector(sum, sum, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(sum, sum, 8, 9, 10, 11, 12, 13, 14, 15));
}

// The sum over the lanes of each of four vectors.
inline Four ReduceSums(const Floats (&sums)[kTileOuts]) {
  const Four a = FoldToFour(sums[0]), b = FoldToFour(sums[1]);
  const Four c = FoldToFour(sums[2]), d = FoldToFour(sums[3]);
  const Four ab =
      __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
  const Four cd =
      __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
  return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
}

// Writes the sums of each row at y + row * stride.
template <int kRows>
__attribute__((always_inline)) inline void StoreSums(const TileSums<kRows>& sums, float* y, int64_t stride) {
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
    const Four totals = ReduceSums(sums[row]);
    std::memcpy(y + row * stride, &totals, sizeof(totals));
  }
}

}  // namespace eet
