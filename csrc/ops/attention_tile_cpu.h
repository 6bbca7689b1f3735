// The host's tile of attention: a block of queries against a tile of keys, in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/simd.h"
#include "core/simd_exp.h"
#include "ops/attention.h"

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

// One query of one head on its way through the tiles of keys.
struct QueryRow {
  Query query;
  float slope;  // ALiBi, 0 for none
  SoftmaxState softmax;
};

// Turns a row of products with the tile's keys into weights, and scales the output so far.
inline void ToWeights(QueryRow& row, float scale, float soft_cap, int tile_key, float* scores,
                      float* output, int64_t output_size) {
  const int begin = std::clamp(row.query.keys.begin - tile_key, 0, kTileKeys);
  const int end = std::clamp(row.query.keys.end - tile_key, begin, kTileKeys);
  if (soft_cap == 0.0f) {
    for (int i = 0; i < kTileKeys; ++i) scores[i] = Score(scores[i], scale, 0.0f);
  } else {
    for (int i = begin; i < end; ++i) scores[i] = Score(scores[i], scale, soft_cap);
  }
  if (row.slope != 0.0f) {
    for (int i = begin; i < end; ++i) {
      scores[i] += AlibiTerm(row.slope, tile_key + i, row.query.position);
    }
  }
  std::fill(scores, scores + begin, -INFINITY);
  std::fill(scores + end, scores + kTileKeys, -INFINITY);
  Floats largest = Load(scores), sum{};
  for (int i = kLanes; i < kTileKeys; i += kLanes) largest = Max(largest, Load(scores + i));
  const float factor = row.softmax.Raise(ReduceMax(largest));
  const float max = row.softmax.max == -INFINITY ? 0.0f : row.softmax.max;
  for (int i = 0; i < kTileKeys; i += kLanes) {
    const Floats weights = Exp2(Load(scores + i) - max);
    sum += weights;
    Store(scores + i, weights);
  }
  row.softmax.sum += ReduceSum(sum);
  for (int64_t col = 0; col < output_size; ++col) output[col] *= factor;
}

}  // namespace eet
