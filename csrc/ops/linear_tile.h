// The inner loops of linear on the host: products of a few rows with four outputs at a time.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/simd.h"
#include "ops/linear.h"

namespace eet {

constexpr int kTileOuts = 4;

// Rows whose sums fit into the vector registers, of which there are 32 or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 4;
#else
constexpr int kTileRows = 2;
#endif

constexpr int64_t RoundUp(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// Adds the products of the rows x + i * stride with four kernel rows, lane by lane: each sum's
// order is that of the columns, whatever the tile. `size` is a multiple of kLanes.
template <int kRows, typename T>
__attribute__((always_inline)) inline void MultiplyTile(const float* x, int64_t stride,
                                                        const T* const (&kernel)[kTileOuts],
                                                        int64_t size,
                                                        Floats (&sums)[kRows][kTileOuts]) {
  for (int64_t k = 0; k < size; k += kLanes) {
    Floats weights[kTileOuts];
#pragma GCC unroll 4
    for (int out = 0; out < kTileOuts; ++out) weights[out] = Load(kernel[out] + k);
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
      const Floats values = Load(x + row * stride + k);
#pragma GCC unroll 4
      for (int out = 0; out < kTileOuts; ++out) sums[row][out] += values * weights[out];
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

// Finishes the outputs `col` to col + 3 of a row, as far as they exist.
template <typename T, typename Y>
inline void StoreTile(const LinearArgs<T, Y>& args, int64_t row, int64_t col,
                      const Floats (&sums)[kTileOuts]) {
  const Four totals = ReduceSums(sums);
  StorePair(args, row, col, totals[0], totals[1]);
  if (col + 2 < args.out) StorePair(args, row, col + 2, totals[2], totals[3]);
}

// Converts `size` elements to float, with zeros up to the next multiple of kLanes.
template <typename T>
inline void Unpack(const T* from, int64_t size, float* to) {
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) Store(to + i, Load(from + i));
  if (whole == size) return;
  T rest[kLanes] = {};
  std::copy(from + whole, from + size, rest);
  Store(to + whole, Load(rest));
}

}  // namespace eet
