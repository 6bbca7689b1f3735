// Linear on Hopper: how the work is cut, and what a block keeps in shared memory.
#pragma once

#include <type_traits>

#include "core/cluster.cuh"
#include "core/ring.cuh"
#include "core/round.h"
#include "core/tma.cuh"
#include "core/wgmma.cuh"

namespace eet {

constexpr int kLinearBlocks = 2;  // of a cluster: two tiles of rows, one tile of outputs
constexpr int kBandPairs = 8;     // of tiles of rows, that are visited together

using LinearCluster = ClusterOf<kLinearBlocks>;

template <typename T_, int kGroups_, int kOuts_, int kStages_, int kBoxes_ = 1>
struct LinearShape {
  using T = T_;
  static constexpr int kGroups = kGroups_;  // warpgroups that multiply, 64 rows each
  static constexpr int kRows = kGroups * kGroupRows, kOuts = kOuts_;
  static constexpr int kCols = 64, kSpan = kCols * sizeof(T);  // of a box, as TMA copies it
  static constexpr int kStages = kStages_, kBoxes = kBoxes_;   // boxes of a stage, side by side
  static constexpr int kStageCols = kBoxes * kCols;
  static constexpr int kPartOuts = kOuts / kLinearBlocks;  // that each block copies for all
  static constexpr int kRowBytes = kRows * kSpan, kOutBytes = kOuts * kSpan;  // of a box
  // Results on their way to memory: a warpgroup's rows, a part of the columns at a time.
  static constexpr int kStoreCols = 64, kStoreBytes = kGroupRows * kStoreCols * sizeof(T);
  static constexpr int kThreads = (kGroups + 1) * kGroupThreads;
  static constexpr int kFewRegisters = 40, kManyRegisters = 232;
};

template <class Shape>
struct LinearShared {
  alignas(1024) char x[Shape::kStages][Shape::kBoxes][Shape::kRowBytes];
  char kernel[Shape::kStages][Shape::kBoxes][Shape::kOutBytes];
  char results[Shape::kGroups][2][Shape::kStoreBytes];
  Barrier full[Shape::kStages], empty[Shape::kStages];
};

// The tiles of a product. A cluster takes a pair of tiles of rows; clusters that work at the same
// time have few rows and few outputs between them, which they read from L2.
struct LinearTiles {
  int pairs, strips;  // of rows, of outputs
  int steps;          // stages of a tile
  int rows;           // that there are

  template <class Shape>
  static LinearTiles Of(int64_t rows, int64_t in, int64_t out, std::type_identity<Shape>) {
    constexpr int kPairRows = kLinearBlocks * Shape::kRows;
    return {.pairs = int(CeilDiv(rows, kPairRows)),
            .strips = int(CeilDiv(out, Shape::kOuts)),
            .steps = int(CeilDiv(in, Shape::kStageCols)),
            .rows = int(rows)};
  }

  // Calls work(row, out) for the first row and output of this block's part of tile i.
  template <class Shape, typename F>
  __device__ __forceinline__ void At(int i, const F& work) const {
    const int band = i / (kBandPairs * strips), first = band * kBandPairs;
    const int in_band = i - first * strips, height = min(kBandPairs, pairs - first);
    const int pair = first + in_band % height, strip = in_band / height;
    work((pair * kLinearBlocks + LinearCluster::Rank()) * Shape::kRows, strip * Shape::kOuts);
  }

  // The same for each tile of this block, in order.
  template <class Shape, typename F>
  __device__ __forceinline__ void ForEach(const F& work) const {
    const int clusters = int(gridDim.x) / kLinearBlocks;
#pragma unroll 1
    for (int i = LinearCluster::Item(); i < pairs * strips; i += clusters) At<Shape>(i, work);
  }
};

template <class Shape>
__device__ void InitBarriers(LinearShared<Shape>& shared) {
  constexpr int kWarps = Shape::kGroups * kGroupThreads / 32;
  for (int i = 0; i < Shape::kStages; ++i) {
    shared.full[i].Init(1);
    shared.empty[i].Init(kLinearBlocks * kWarps);
  }
  FenceBarrierInit();
}

}  // namespace eet
