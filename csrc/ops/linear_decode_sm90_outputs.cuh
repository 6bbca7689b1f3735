// What linear for few rows on Hopper makes of its sums, four neighbours at a time.
#pragma once

#include "ops/activation.cuh"
#include "ops/linear_decode_sm90_shape.cuh"

namespace eet {

// Adjacent elements that are moved together.
template <typename Y, int kCount>
struct alignas(kCount * sizeof(Y)) Neighbours {
  Y values[kCount];
};

// To four sums, of outputs from `out` on.
template <typename T>
__device__ __forceinline__ void AddBias(const T* bias, int64_t out, float (&sums)[4]) {
  if (!bias) return;
  const auto some = *reinterpret_cast<const Neighbours<T, 4>*>(bias + out);
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] += float(some.values[i]);
}

// y = activation(sum + bias) + residual, as StoreOutput, or gated, as StoreGated.
template <typename T, typename Y>
class LinearDecodeOutputs {
 public:
  using Args = LinearArgs<T, Y>;
  static constexpr bool kAppends = false;
  static constexpr bool kScales = std::is_same_v<T, bfloat16> && std::is_same_v<Y, T>;

  __device__ explicit LinearDecodeOutputs(const Args& args) : args_(args) {
    const auto bits = reinterpret_cast<uintptr_t>(args.y) |
                      reinterpret_cast<uintptr_t>(args.residual) |
                      reinterpret_cast<uintptr_t>(args.bias);
    in_fours_ = args.out % 4 == 0 && bits % 16 == 0;
  }

  // Where sums of the squares of outputs go, for a norm that follows; nullptr: there is none.
  __device__ float* Squares() const { return kScales ? args_.scaled.squares : nullptr; }

  // Stores four outputs of row `row`, the first a multiple of four. Where a norm follows, returns
  // the sum of their squares.
  __device__ __forceinline__ float Store(int64_t row, int64_t out, float (&sums)[4]) const {
    if (in_fours_) return StoreFour(row, out, sums);
    StorePairs(args_, row, out, sums[0], sums[1], sums[2], sums[3]);
    return 0.0f;
  }

 private:
  __device__ __forceinline__ float StoreFour(int64_t row, int64_t out, float (&sums)[4]) const {
    AddBias(args_.bias, out, sums);
    const int64_t at = row * args_.out + out;
    if (args_.gated) {
      Finish<2>(at / 2, {ActivateFast(args_.activation, sums[0]) * sums[1],
                         ActivateFast(args_.activation, sums[2]) * sums[3]});
      return 0.0f;
    }
    if (args_.activation != Activation::kNone) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = ActivateFast(args_.activation, sums[i]);
    }
    const Neighbours<Y, 4> y = Finish(at, sums);
    return Squares() ? Scale(at, out, y) : 0.0f;
  }

  // For odd sizes and addresses; apart from the code that usually runs.
  __device__ __noinline__ static void StorePairs(const Args& args, int64_t row, int64_t out,
                                                 float first, float second, float third,
                                                 float fourth) {
    StorePair(args, row, out, first, second);
    if (out + 2 < args.out) StorePair(args, row, out + 2, third, fourth);
  }

  // Adds the residual and stores; returns what it has stored. `at`: of the first in y.
  template <int kCount>
  __device__ __forceinline__ Neighbours<Y, kCount> Finish(int64_t at,
                                                          const float (&values)[kCount]) const {
    using Pack = Neighbours<Y, kCount>;
    Pack residual = {}, result;
    if (args_.residual) residual = *reinterpret_cast<const Pack*>(args_.residual + at);
#pragma unroll
    for (int i = 0; i < kCount; ++i) result.values[i] = Y(values[i] + float(residual.values[i]));
    *reinterpret_cast<Pack*>(args_.y + at) = result;
    return result;
  }

  // Stores outputs times the scale of the norm that follows; returns the sum of their squares.
  __device__ __forceinline__ float Scale(int64_t at, int64_t out, const Neighbours<Y, 4>& y) const {
    using Pack = Neighbours<Y, 4>;
    const Pack scale = *reinterpret_cast<const Pack*>(args_.scaled.scale + out);
    Pack scaled;
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float value = float(y.values[i]);
      scaled.values[i] = Y(value * float(scale.values[i]));
      squares += value * value;
    }
    *reinterpret_cast<Pack*>(args_.scaled.scaled + at) = scaled;
    return squares;
  }

  const Args& args_;
  bool in_fours_;  // whether all packs are aligned
};

}  // namespace eet
