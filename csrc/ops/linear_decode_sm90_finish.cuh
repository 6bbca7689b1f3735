// How linear for few rows on Hopper finishes a tile: blocks that divide its columns send each other
// sums, and each finishes its share of the outputs, four at a time.
#pragma once

#include "core/instructions.cuh"
#include "ops/linear_decode_sm90_shape.cuh"

namespace eet {

// Adjacent elements that are moved together.
template <typename Y, int kCount>
struct alignas(kCount * sizeof(Y)) Neighbours {
  Y values[kCount];
};

// Adds the residual and stores. `at`: of the first in y.
template <typename T, typename Y, int kCount>
__device__ __forceinline__ void StoreNeighbours(const LinearArgs<T, Y>& args, int64_t at,
                                                const float (&values)[kCount]) {
  using Pack = Neighbours<Y, kCount>;
  Pack residual = {}, result;
  if (args.residual) residual = *reinterpret_cast<const Pack*>(args.residual + at);
#pragma unroll
  for (int i = 0; i < kCount; ++i) result.values[i] = Y(values[i] + float(residual.values[i]));
  *reinterpret_cast<Pack*>(args.y + at) = result;
}

// As StorePair, of outputs `col` to col + 3, whose packs are aligned.
template <typename T, typename Y>
__device__ __forceinline__ void StoreFour(const LinearArgs<T, Y>& args, int64_t row, int64_t col,
                                          float (&sums)[4]) {
  if (args.bias) {
    const auto bias = *reinterpret_cast<const Neighbours<T, 4>*>(args.bias + col);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += float(bias.values[i]);
  }
  const int64_t at = row * args.out + col;
  if (args.gated) {
    StoreNeighbours(args, at / 2,
                    {Activate(args.activation, sums[0]) * sums[1],
                     Activate(args.activation, sums[2]) * sums[3]});
    return;
  }
  if (args.activation != Activation::kNone) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = Activate(args.activation, sums[i]);
  }
  StoreNeighbours(args, at, sums);
}

template <typename T, typename Y>
__device__ __forceinline__ bool HasAlignedFours(const LinearArgs<T, Y>& args) {
  const auto bits = reinterpret_cast<uintptr_t>(args.y) |
                    reinterpret_cast<uintptr_t>(args.residual) |
                    reinterpret_cast<uintptr_t>(args.bias);
  return args.out % 4 == 0 && bits % 16 == 0;
}

template <class Shape>
class LinearDecodeFinisher {
 public:
  using T = typename Shape::T;
  using Sums = LinearDecodeSums<Shape>;

  // For a tile of which so many tokens exist.
  __device__ LinearDecodeFinisher(LinearDecodeShared<Shape>& shared, int tokens)
      : shared_(shared), tokens_(tokens) {}

  // Gives the other blocks their shares; by all consumers, whose sums are stored. Returns when
  // this block's share is there, from all.
  __device__ __forceinline__ void Exchange() const {
    if constexpr (Shape::kSplits == 1) return;
    const int bytes = tokens_ * Shape::kLine * 4, rank = threadIdx.x;
    if (rank < Shape::kSplits) {
      if (rank == 0) shared_.all_received.ArriveExpecting(Shape::kSplits * bytes);
      SendBytes(rank, shared_.received[Shape::Rank()], shared_.sums[rank], bytes,
                shared_.all_received);
    }
    shared_.all_received.Wait(0);
  }

  // By all consumers.
  template <typename Y>
  __device__ __forceinline__ void Finish(const LinearArgs<T, Y>& args,
                                         const LinearDecodePart& part) const {
    constexpr int kFours = Shape::kShare / 4;
    const int first_out = part.out + Shape::Rank() * Shape::kShare;
    const bool aligned = HasAlignedFours(args);
#pragma unroll 4
    for (int i = threadIdx.x; i < tokens_ * kFours; i += Shape::kConsumers) {
      const int token = i / kFours, at = i % kFours * 4;
      const int64_t row = part.token + token, out = first_out + at;
      if (out >= args.out) continue;
      float sums[4] = {};
      Add(token, at, sums);
      if (aligned) {
        StoreFour(args, row, out, sums);
      } else {
        StorePair(args, row, out, sums[0], sums[1]);
        if (out + 2 < args.out) StorePair(args, row, out + 2, sums[2], sums[3]);
      }
    }
  }

 private:
  // Adds four neighbours of a token's sums, in the order of the blocks.
  __device__ __forceinline__ void Add(int token, int at, float (&sums)[4]) const {
    const Sums* parts = Shape::kSplits == 1 ? shared_.sums : shared_.received;
#pragma unroll
    for (int split = 0; split < Shape::kSplits; ++split) {
      const auto part = *reinterpret_cast<const Neighbours<float, 4>*>(&parts[split][token][at]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += part.values[i];
    }
  }

  LinearDecodeShared<Shape>& shared_;
  const int tokens_;
};

}  // namespace eet
