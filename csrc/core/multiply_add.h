// Products of small matrices of floats on the host.
#pragma once

#include <cstdint>

#include "core/simd.h"

namespace eet {

// As many accumulators as the registers hold: sums of 4 rows by 16 or 32 columns.
constexpr int kRowStep = 4;
#ifdef __AVX512F__
constexpr int kVectorStep = 2;
#else
constexpr int kVectorStep = 1;
#endif

template <int kRows, int kVectors>
inline void MultiplyAddBlock(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                             float* c, int64_t c_stride, int64_t inner) {
  Floats sums[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) sums[i][j] = Load(c + i * c_stride + j * kLanes);
  }
  for (int64_t k = 0; k < inner; ++k) {
    for (int j = 0; j < kVectors; ++j) {
      const Floats column = Load(b + k * b_stride + j * kLanes);
      for (int i = 0; i < kRows; ++i) sums[i][j] += a[i * a_stride + k] * column;
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) Store(c + i * c_stride + j * kLanes, sums[i][j]);
  }
}

template <int kRows>
inline void MultiplyAddRows(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                            float* c, int64_t c_stride, int64_t inner, int64_t cols) {
  int64_t col = 0;
  for (; col + kVectorStep * kLanes <= cols; col += kVectorStep * kLanes) {
    MultiplyAddBlock<kRows, kVectorStep>(a, a_stride, b + col, b_stride, c + col, c_stride, inner);
  }
  for (; col < cols; col += kLanes) {
    MultiplyAddBlock<kRows, 1>(a, a_stride, b + col, b_stride, c + col, c_stride, inner);
  }
}

// c += a b, of [rows, inner] and [inner, cols]; cols is a multiple of kLanes.
inline void MultiplyAdd(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                        float* c, int64_t c_stride, int64_t rows, int64_t inner, int64_t cols) {
  int64_t row = 0;
  for (; row + kRowStep <= rows; row += kRowStep) {
    MultiplyAddRows<kRowStep>(a + row * a_stride, a_stride, b, b_stride, c + row * c_stride,
                              c_stride, inner, cols);
  }
  for (; row < rows; ++row) {
    MultiplyAddRows<1>(a + row * a_stride, a_stride, b, b_stride, c + row * c_stride, c_stride,
                       inner, cols);
  }
}

}  // namespace eet
