// How linear on Hopper finishes a tile whose results are float32.
#pragma once

#include "ops/linear_prefill_sm90_epilogue.cuh"

namespace eet {

// y = activation(sum + bias) + residual, as StoreOutput. Of any number of outputs: rows need not be
// aligned.
template <class Shape>
class LinearFloats {
 public:
  using Args = LinearArgs<typename Shape::T, float>;

  __device__ LinearFloats(const Args& args, int row, int out)
      : args_(args), row_(row + RowOfLane()), out_(out) {}

  __device__ __forceinline__ void Begin(LinearSums<Shape>& sums) const {
    AddBias<Shape>(args_.bias, out_, args_.out, sums);
  }

  __device__ __forceinline__ void Finish(LinearSums<Shape>& sums, LinearStore<Shape>&) const {
    // A branch before each part keeps the compiler from having all half done, in more registers
    // than there are.
    constexpr int kPartOuts = 32;
    InParts<Shape, kPartOuts / 2>(sums, [&](int part, float (&some)[kPartOuts / 2]) {
      if (out_ + part * kPartOuts < args_.out) ActivateSums(args_.activation, some);
    });
    const bool in_pairs = args_.out % 2 == 0 && !args_.residual;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (row_ + 8 * i >= args_.rows) break;
      if (in_pairs) {
        StorePairs(sums, i);
      } else {
        StoreOneByOne(sums, i);
      }
    }
  }

 private:
  __device__ int64_t At(int i) const { return int64_t{row_ + 8 * i} * args_.out; }

  __device__ __forceinline__ void StorePairs(const LinearSums<Shape>& sums, int i) const {
#pragma unroll
    for (int n = 0; n < Shape::kOuts / 8; ++n) {
      const int col = out_ + 8 * n + PairOfLane(), at = 4 * n + 2 * i;
      if (col >= args_.out) continue;
      *reinterpret_cast<float2*>(args_.y + At(i) + col) = {sums[at], sums[at + 1]};
    }
  }

  __device__ __forceinline__ void StoreOneByOne(const LinearSums<Shape>& sums, int i) const {
#pragma unroll
    for (int n = 0; n < Shape::kOuts / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int col = out_ + 8 * n + PairOfLane() + j;
        if (col >= args_.out) continue;
        const float residual = args_.residual ? args_.residual[At(i) + col] : 0.0f;
        args_.y[At(i) + col] = sums[4 * n + 2 * i + j] + residual;
      }
    }
  }

  const Args& args_;
  const int row_, out_;
};

}  // namespace eet
