// Linear for few rows on Hopper: how the work is cut, and what a block keeps in shared memory.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/cluster.cuh"
#include "core/ring.cuh"
#include "core/round.h"
#include "core/tma.cuh"
#include "core/wgmma.cuh"
#include "ops/linear_cuda.h"

namespace eet {

template <typename T_, int kTokens_, int kSplits_>
struct LinearDecodeShape {
  using T = T_;
  static constexpr int kTokens = kTokens_;  // of a block, at most
  static constexpr int kSplits = kSplits_;  // blocks that divide the columns of a tile
  static constexpr int kGroups = 2, kOuts = kGroups * kGroupRows;
  static constexpr int kCols = 64, kSpan = kCols * sizeof(T);  // of a stage
  static constexpr bool kNorms = std::is_same_v<T, bfloat16>;  // as LinearSquareParts has it
  static constexpr int kWeightBytes = kOuts * kSpan, kTokenBytes = kTokens * kSpan;

  // A block finishes its share of the outputs, from the sums of all. Floats from one token's sums
  // to the next: lanes that write side by side meet no bank twice.
  static constexpr int kShare = kOuts / kSplits, kLine = kShare + 4;
  static constexpr int kSumBytes = kSplits * kTokens * kLine * 4;

  // Blocks that share a multiprocessor's 228 KiB; each costs one, and has one for what is small.
  static constexpr int kBlocks = kTokens <= 64 ? 2 : 1;
  static constexpr int kBytes = (228 / kBlocks - 2) * 1024;
  static constexpr int kRingBytes = kBytes - (kSplits > 1 ? kSumBytes : 0);
  static constexpr int kStages = std::min(6, kRingBytes / (kWeightBytes + kTokenBytes));

  static constexpr int kConsumerThreads = kGroups * kGroupThreads,
                       kThreads = kConsumerThreads + kWarpSize;
  using Cluster = ClusterOf<kSplits>;

  static __device__ int Rank() {
    if constexpr (kSplits > 1) return Cluster::Rank();
    return 0;
  }
};

// Sums of a share of a tile's outputs over a part of the columns.
template <class Shape>
using LinearDecodeSums = float[Shape::kTokens][Shape::kLine];

template <class Shape>
struct LinearDecodeShared {
  struct Ring {
    char weights[Shape::kStages][Shape::kWeightBytes];
    char tokens[Shape::kStages][Shape::kTokenBytes];
  };
  union {
    alignas(1024) Ring ring;
    LinearDecodeSums<Shape> sums[Shape::kSplits];  // of each share, once the ring is empty
  };
  // Sums of this block's share, from all blocks that divide the columns.
  LinearDecodeSums<Shape> received[Shape::kSplits > 1 ? Shape::kSplits : 0];
  int64_t slots[Shape::kTokens];  // in the cache, where outputs are appended to it
  float inverse[Shape::kTokens];  // reciprocal root mean squares, of tokens that are to be normed
  Barrier full[Shape::kStages], empty[Shape::kStages], all_received;

  // Where this block's sums of a share go: those of its own need not be sent.
  __device__ LinearDecodeSums<Shape>& SumsOf(int share) {
    if constexpr (Shape::kSplits > 1) {
      if (share == Shape::Rank()) return received[share];
    }
    return sums[share];
  }
};

// What is multiplied.
struct LinearDecodeSizes {
  int64_t rows, in, out;
  bool weights_are_ready;  // as LinearArgs has it
  NormedInput normed;      // likewise
};

// A block's part of a product.
struct LinearDecodePart {
  int out, token;        // its first ones
  int first_col, steps;  // columns: so many stages of them

  template <class Shape>
  static __device__ LinearDecodePart Of(int64_t in, std::type_identity<Shape>) {
    const int steps = int(CeilDiv(in, Shape::kCols)), rank = Shape::Rank();
    const int begin = steps * rank / Shape::kSplits, end = steps * (rank + 1) / Shape::kSplits;
    return {.out = int(blockIdx.x) / Shape::kSplits * Shape::kOuts,
            .token = int(blockIdx.y) * Shape::kTokens,
            .first_col = begin * Shape::kCols,
            .steps = end - begin};
  }
};

template <class Shape>
__device__ void InitBarriers(LinearDecodeShared<Shape>& shared) {
  for (int i = 0; i < Shape::kStages; ++i) {
    shared.full[i].Init(1);
    shared.empty[i].Init(Shape::kConsumerThreads / kWarpSize);
  }
  shared.all_received.Init(1);
  FenceBarrierInit();
}

}  // namespace eet
