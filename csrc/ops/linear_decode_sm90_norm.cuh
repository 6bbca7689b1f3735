// How linear for few rows on Hopper norms its input: the sums of a token's products, times what its
// squares say. Each block adds those up for itself, while weights and tokens are on their way.
#pragma once

#include "core/lanes.cuh"
#include "ops/linear_decode_sm90_outputs.cuh"

namespace eet {

// By all consumers, four lanes for each token. The sums have the same order however many tokens
// there are.
template <class Shape>
class LinearDecodeNorm {
 public:
  __device__ LinearDecodeNorm(const LinearDecodeSizes& sizes, int first_token, int tokens)
      : sizes_(sizes), first_token_(first_token), tokens_(tokens) {}

  // Asks for the squares: nobody waits for the first of them, which are all as a rule.
  __device__ __forceinline__ void Load() {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int token = TokenOf(turn), parts = PartsOf(token);
      const float* squares =
          sizes_.normed.squares + (first_token_ + token) * LinearSquaresLine(sizes_.in);
#pragma unroll
      for (int n = 0; n < kAhead; ++n) packs_[turn][n] = LoadPack(squares, PackOf(n), parts);
      float (&sums)[4] = sums_[turn];
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = 0.0f;
#pragma unroll kAhead
      for (int at = PackOf(kAhead); at < parts; at += kLanes * 4) {
        Add(LoadPack(squares, at, parts), at, parts, sums);
      }
    }
  }

  // Leaves in shared memory what the tokens' products are to be multiplied by.
  __device__ __forceinline__ void Finish(LinearDecodeShared<Shape>& shared) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int token = TokenOf(turn), parts = PartsOf(token);
      float (&sums)[4] = sums_[turn];
#pragma unroll
      for (int n = 0; n < kAhead; ++n) Add(packs_[turn][n], PackOf(n), parts, sums);
      float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
#pragma unroll
      for (int lanes = 1; lanes < kLanes; lanes *= 2) {
        sum += __shfl_xor_sync(kFullMask, sum, lanes);
      }
      if (token < tokens_ && threadIdx.x % kLanes == 0) {
        shared.inverse[token] = rsqrtf(sum / float(sizes_.in) + sizes_.normed.eps);
      }
    }
  }

 private:
  using Pack = Neighbours<float, 4>;
  static constexpr int kLanes = 4, kAhead = 8;
  static constexpr int kAtOnce = Shape::kConsumers / kLanes;  // tokens
  static constexpr int kTurns = (Shape::kTokens + kAtOnce - 1) / kAtOnce;

  static __device__ __forceinline__ int TokenOf(int turn) {
    return turn * kAtOnce + int(threadIdx.x) / kLanes;
  }

  __device__ __forceinline__ int PartsOf(int token) const {
    return token < tokens_ ? int(sizes_.normed.parts) : 0;
  }

  // The first part of a lane's pack n.
  static __device__ __forceinline__ int PackOf(int n) {
    return (n * kLanes + int(threadIdx.x) % kLanes) * 4;
  }

  static __device__ __forceinline__ Pack LoadPack(const float* squares, int at, int parts) {
    return at < parts ? *reinterpret_cast<const Pack*>(squares + at) : Pack{};
  }

  // What lies behind the last part is anything.
  static __device__ __forceinline__ void Add(const Pack& pack, int at, int parts,
                                             float (&sums)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (at + i < parts) sums[i] += pack.values[i];
    }
  }

  const LinearDecodeSizes& sizes_;
  const int first_token_, tokens_;
  Pack packs_[kTurns][kAhead];
  float sums_[kTurns][4];
};

}  // namespace eet
