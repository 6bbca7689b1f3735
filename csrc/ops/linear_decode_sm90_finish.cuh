// How linear for few rows on Hopper finishes a tile: blocks that divide its columns send each other
// sums, and each finishes its share of the outputs, four at a time.
#pragma once

#include "core/instructions.cuh"
#include "ops/linear_decode_sm90_outputs.cuh"

namespace eet {

template <class Shape>
class LinearDecodeFinisher {
 public:
  using T = typename Shape::T;
  using Sums = LinearDecodeSums<Shape>;

  // For a tile of which so many tokens exist, `normed` if those are to be.
  __device__ LinearDecodeFinisher(LinearDecodeShared<Shape>& shared, int tokens, bool normed)
      : shared_(shared), tokens_(tokens), normed_(normed) {}

  // Gives the other blocks their shares; by all consumers, whose sums are stored. Returns when
  // this block's share is there, from all.
  __device__ __forceinline__ void Exchange() const {
    if constexpr (Shape::kSplits == 1) return;
    const int bytes = tokens_ * Shape::kLine * 4, rank = threadIdx.x;
    if (rank < Shape::kSplits) {
      if (rank == 0) shared_.all_received.ArriveExpecting((Shape::kSplits - 1) * bytes);
      if (rank != Shape::Rank()) {
        BulkCopyTo(rank, shared_.received[Shape::Rank()], shared_.sums[rank], bytes,
                   shared_.all_received);
      }
    }
    shared_.all_received.Wait(0);
  }

  // Brings outputs to where they go, as `output` makes them; by all consumers.
  template <class Output>
  __device__ __forceinline__ void Finish(const Output& output, const LinearDecodePart& part,
                                         int64_t outs) const {
    const int64_t first_out = FirstOut(part);
#pragma unroll 4
    for (int i = threadIdx.x; i < tokens_ * kFours; i += Shape::kConsumerThreads) {
      const int token = i / kFours, at = i % kFours * 4;
      const int64_t row = part.token + token, out = first_out + at;
      if (out >= outs) continue;
      float sums[4] = {};
      Add(token, at, sums);
      if constexpr (Output::kAppends) {
        output.Store(row, shared_.slots[token], out, sums);
      } else {
        const float squares = output.Store(row, out, sums);
        if (output.Squares()) Parts()[0][token][at] = squares;  // the sums there are done with
      }
    }
    if constexpr (!Output::kAppends) {
      if (output.Squares()) StoreSquares(output.Squares(), part, outs);
    }
  }

 private:
  static constexpr int kFours = Shape::kShare / 4;

  // The first output of this block's share.
  static __device__ __forceinline__ int64_t FirstOut(const LinearDecodePart& part) {
    return part.out + Shape::Rank() * Shape::kShare;
  }

  // The sums of this block's share, from all blocks that divide the columns.
  __device__ __forceinline__ Sums* Parts() const {
    return Shape::kSplits == 1 ? shared_.sums : shared_.received;
  }

  // Adds what Finish has left of each token: one part for each block. By all consumers.
  __device__ __forceinline__ void StoreSquares(float* squares, const LinearDecodePart& part,
                                               int64_t outs) const {
    WaitAtBarrier<Shape::kConsumerThreads>(1);
    const int token = threadIdx.x;
    if (token >= tokens_) return;
    const int64_t first_out = FirstOut(part);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      if (first_out + 4 * i < outs) sum += Parts()[0][token][4 * i];
    }
    squares[(part.token + token) * LinearSquaresLine(outs) + blockIdx.x] = sum;
  }

  // Adds four neighbours of a token's sums, in the order of the blocks, and norms them.
  __device__ __forceinline__ void Add(int token, int at, float (&sums)[4]) const {
    const Sums* parts = Parts();
#pragma unroll
    for (int split = 0; split < Shape::kSplits; ++split) {
      const auto part = *reinterpret_cast<const Neighbours<float, 4>*>(&parts[split][token][at]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += part.values[i];
    }
    if (!normed_) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] *= shared_.inverse[token];
  }

  LinearDecodeShared<Shape>& shared_;
  const int tokens_;
  const bool normed_;
};

}  // namespace eet
