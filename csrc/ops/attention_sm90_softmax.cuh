// Online softmax over a warpgroup's scores on Hopper, in registers.
#pragma once

#include "core/reduce.cuh"
#include "ops/attention_sm90_shape.cuh"

namespace eet {

// A thread's part of the scores of 64 queries with kKeys keys: element [4 * n + 2 * i + j] is that
// of its query i and key 8 * n + lane % 4 * 2 + j. A thread has queries 16 * warp + lane / 4 and
// 8 after it.
template <class Shape>
using Scores = float[Shape::kKeys / 2];

// Scores as weights in pairs, as an operand wants them: word [2 * n + i] has j = 0, 1.
template <class Shape>
using Weights = uint32_t[Shape::kKeys / 4];

// The running maximum and sum of a thread's two queries.
struct SoftmaxPair {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};  // over this thread's keys only
};

// Calls change(score, i, offset), the key being offset + lane % 4 * 2 in the tile.
template <class Shape, typename F>
__device__ __forceinline__ void ForEachScore(Scores<Shape>& scores, const F& change) {
#pragma unroll
  for (int n = 0; n < Shape::kKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) change(scores[4 * n + 2 * i + j], i, 8 * n + j);
    }
  }
}

// soft_cap * log2(e) * tanh(product * scale / soft_cap), its error far below that of products.
__device__ __forceinline__ float Cap(float product, float twice_inner, float outer) {
  const float power = Exp2(product * twice_inner);  // e^2x
  return fmaf(-2.0f * outer, __fdividef(1.0f, 1.0f + power), outer);
}

// Soft cap and ALiBi. Scores are in units of log 2 after it.
template <class Shape>
__device__ __forceinline__ void Bias(const AttentionArgs<typename Shape::T>& args, float slope,
                                     int key, int position, Scores<Shape>& scores) {
  if (args.soft_cap == 0.0f) {
    const float factor = args.scale * kLog2E;
    ForEachScore<Shape>(scores, [&](float& score, int, int) { score *= factor; });
  } else {
    const float inner = 2.0f * kLog2E * args.scale / args.soft_cap;
    const float outer = args.soft_cap * kLog2E;
    ForEachScore<Shape>(scores, [&](float& score, int, int) { score = Cap(score, inner, outer); });
  }
  if (args.alibi_slopes) {
    const int distance = key - position;  // of the first query
    ForEachScore<Shape>(scores, [&](float& score, int i, int offset) {
      score = fmaf(slope * kLog2E, float(distance + offset - 8 * i), score);
    });
  }
}

// Minus infinity where the query does not see the key. `key` and `position` are the thread's first.
template <class Shape>
__device__ __forceinline__ void Mask(const AttentionArgs<typename Shape::T>& args, int length,
                                     int key, int position, Scores<Shape>& scores) {
  int begin[2], count[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const KeyRange keys = VisibleKeys(position + 8 * i, length, args.window, args.causal);
    begin[i] = keys.begin - key;
    count[i] = keys.end - keys.begin;
  }
  ForEachScore<Shape>(scores, [&](float& score, int i, int offset) {
    if (unsigned(offset - begin[i]) >= unsigned(count[i])) score = -INFINITY;
  });
}

// The largest of a query's scores over all threads that have some.
template <class Shape>
__device__ __forceinline__ float Largest(const Scores<Shape>& scores, int i, float largest) {
  float other = -INFINITY;
#pragma unroll
  for (int n = 0; n < Shape::kKeys / 8; ++n) {
    largest = fmaxf(largest, scores[4 * n + 2 * i]);
    other = fmaxf(other, scores[4 * n + 2 * i + 1]);
  }
  largest = fmaxf(largest, other);
  largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 1));
  return fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 2));
}

// From scores, in units of 1 / scale, to weights. No operation is left to be contracted, so that
// tiles of both kinds give the same bits. Returns in `factors` those of all that was
// accumulated before, exactly 1 where the maximum stays. kMasked: there may be no score at all.
template <class Shape, bool kMasked>
__device__ __forceinline__ void ToWeights(float scale, SoftmaxPair& softmax, float (&factors)[2],
                                          Scores<Shape>& scores) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float before = softmax.max[i], largest = Largest<Shape>(scores, i, before);
    const float base = kMasked && largest == -INFINITY ? 0.0f : largest;
    softmax.max[i] = largest;
    factors[i] = Exp2((before - base) * scale);
    const float shift = -base * scale;
    float sums[2] = {__fmul_rn(softmax.sum[i], factors[i]), 0.0f};
#pragma unroll
    for (int n = 0; n < Shape::kKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float& score = scores[4 * n + 2 * i + j];
        score = Exp2(fmaf(score, scale, shift));
        sums[j] += score;
      }
    }
    softmax.sum[i] = sums[0] + sums[1];
  }
}

template <class Shape>
__device__ __forceinline__ void PackWeights(const Scores<Shape>& scores, Weights<Shape>& weights) {
#pragma unroll
  for (int i = 0; i < Shape::kKeys / 4; ++i) {
    weights[i] =
        PackPair(scores[2 * i], scores[2 * i + 1], std::type_identity<typename Shape::T>{});
  }
}

}  // namespace eet
