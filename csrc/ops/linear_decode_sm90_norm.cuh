// How linear for few rows on Hopper norms its input: the sums of a token's products, times what its
// squares say. Each block adds those up for itself, while weights and tokens are on their way.
#pragma once

#include "core/lanes.cuh"
#include "ops/linear_decode_sm90_outputs.cuh"

namespace eet {

constexpr int kSquaresLanes = 4;  // that add up a row together

// A row's sum of squares, in the same order however many rows there are. All its lanes get it.
__device__ __forceinline__ float SumSquares(const float* squares, int parts) {
  constexpr int kLanes = kSquaresLanes, kAhead = 8;
  using Pack = Neighbours<float, 4>;
  float sums[4] = {};
#pragma unroll 1
  for (int first = threadIdx.x % kLanes * 4; first < parts; first += kAhead * kLanes * 4) {
    Pack packs[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const int at = first + n * kLanes * 4;
      packs[n] = at < parts ? *reinterpret_cast<const Pack*>(squares + at) : Pack{};
    }
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first + n * kLanes * 4 + i < parts) sums[i] += packs[n].values[i];
      }
    }
  }
  float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
#pragma unroll
  for (int lanes = 1; lanes < kLanes; lanes *= 2) {
    sum += __shfl_xor_sync(kFullMask, sum, lanes);
  }
  return sum;
}

// By all consumers: what a norm multiplies the tokens' products by.
template <class Shape>
__device__ __forceinline__ void FindInverses(const LinearDecodeSizes& sizes, int first_token,
                                             int tokens, LinearDecodeShared<Shape>& shared) {
  constexpr int kLanes = kSquaresLanes;
  const int64_t line = LinearSquaresLine(sizes.in);
#pragma unroll 1
  for (int first = 0; first < tokens; first += Shape::kConsumerThreads / kLanes) {
    const int token = first + threadIdx.x / kLanes;
    const bool exists = token < tokens;
    const float* squares = sizes.normed.squares + (first_token + token) * line;
    const float sum = SumSquares(squares, exists ? int(sizes.normed.parts) : 0);
    if (exists && threadIdx.x % kLanes == 0) {
      shared.inverse[token] = rsqrtf(sum / float(sizes.in) + sizes.normed.eps);
    }
  }
}

}  // namespace eet
