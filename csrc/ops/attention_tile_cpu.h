// The host's tile of attention: a block of queries against a tile of keys, in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/simd_exp.h"
#include "ops/attention.h"

namespace eet {

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
