// Inner products on the host: a few rows with four others at a time.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/factors.h"

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
__attribute__((always_inline)) inline void StoreSums(const TileSums<kRows>& sums, float* y,
                                                     int64_t stride) {
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
    const Four totals = ReduceSums(sums[row]);
    std::memcpy(y + row * stride, &totals, sizeof(totals));
  }
}

// Four rows of elements, wherever each is.
template <typename T>
struct FourRows {
  const T* rows[kTileOuts];

  // Rows of a matrix [count, size] from `first` on; the last one again for those that do not exist.
  static FourRows Of(const T* matrix, int64_t size, int64_t first, int64_t count) {
    FourRows four;
    for (int i = 0; i < kTileOuts; ++i) {
      four.rows[i] = matrix + std::min(first + i, count - 1) * size;
    }
    return four;
  }
};

// Factors from a row's end, which is before `size`, with zeros after it.
template <typename T>
inline Factors<Factor<T>> LoadRest(const T* row, int64_t size) {
  constexpr int kStep = Factors<Factor<T>>::kSize;
  Factor<T> rest[kStep] = {};
  CopyFactors(row, size, kStep, rest);
  return LoadFactors(rest);
}

// y[i] = x[i] . rows for kRows rows of x, which is [kRows, stride] with zeros after `size`; y is
// [kRows, y_stride]. The memory `ahead` bytes after the rows is asked for, in its order.
template <int kRows, typename T>
inline void DotRows(const FourRows<T>& four, int64_t size, const Factor<T>* x, int64_t stride,
                    float* y, int64_t y_stride, int64_t ahead) {
  constexpr int kStep = Factors<Factor<T>>::kSize;
  constexpr int kLine = 64, kBytes = kTileOuts * kStep * sizeof(T);
  const char* next = reinterpret_cast<const char*>(four.rows[0]) + ahead;
  TileSums<kRows> sums = {};
  Factors<Factor<T>> factors[kTileOuts];
  const int64_t whole = size / kStep * kStep;
  for (int64_t k = 0; k < whole; k += kStep, next += kBytes) {
#pragma GCC unroll 4
    for (int line = 0; line < kBytes; line += kLine) __builtin_prefetch(next + line);
#pragma GCC unroll 4
    for (int i = 0; i < kTileOuts; ++i) factors[i] = LoadFactors(four.rows[i] + k);
    AddProducts<kRows>(x + k, stride, factors, sums);
  }
  if (whole < size) {
    for (int i = 0; i < kTileOuts; ++i) factors[i] = LoadRest(four.rows[i] + whole, size - whole);
    AddProducts<kRows>(x + whole, stride, factors, sums);
  }
  StoreSums<kRows>(sums, y, y_stride);
}

// The same for one row of x, reading the four one after the other: a single stream of memory is the
// fastest, and a sum that waits for the one before it is faster still.
template <typename T>
inline void DotOneRow(const FourRows<T>& four, int64_t size, const Factor<T>* x, float* y,
                      int64_t ahead) {
  constexpr int kStep = Factors<Factor<T>>::kSize;
  TileSums<1> sums = {};
  const int64_t whole = size / kStep * kStep;
#pragma GCC unroll 4
  for (int i = 0; i < kTileOuts; ++i) {
    const T* row = four.rows[i];
    Floats& sum = sums[0][i];
    for (int64_t k = 0; k < whole; k += kStep) {
      __builtin_prefetch(reinterpret_cast<const char*>(row + k) + ahead);
      sum = MultiplyAdd(sum, LoadFactors(x + k), LoadFactors(row + k));
    }
    if (whole < size) {
      sum = MultiplyAdd(sum, LoadFactors(x + whole), LoadRest(row + whole, size - whole));
    }
  }
  StoreSums<1>(sums, y, 0);
}

// The same for any number of rows; as many at a time as there are registers for.
template <typename T, int kRows = kTileRows>
inline void DotAllRows(const FourRows<T>& four, int64_t size, int64_t rows, const Factor<T>* x,
                       int64_t stride, float* y, int64_t y_stride, int64_t ahead) {
  for (; rows >= kRows; rows -= kRows, x += kRows * stride, y += kRows * y_stride) {
    DotRows<kRows>(four, size, x, stride, y, y_stride, ahead);
  }
  if constexpr (kRows > 1) {
    if (rows > 0) DotAllRows<T, kRows - 1>(four, size, rows, x, stride, y, y_stride, ahead);
  }
}

}  // namespace eet
