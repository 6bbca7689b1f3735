// The thread of linear for many rows on Hopper that issues TMA loads.
#pragma once

#include "ops/linear_prefill_sm90_shape.cuh"

namespace eet {

// How TMA finds x and kernel: boxes of kCols columns, zeros beyond the last. And y, where results
// have 16 bits.
struct LinearMaps {
  CUtensorMap x, kernel, y;  // (in, rows, 1, 1), (in, out, 1, 1) and (columns, rows, 1, 1)
};

template <class Shape>
class LinearLoader {
 public:
  __device__ LinearLoader(const LinearMaps& maps, const LinearTiles& tiles,
                          LinearShared<Shape>& shared)
      : maps_(maps), tiles_(tiles), shared_(shared) {}

  // `weights_are_ready`: the first tiles of `kernel` need not wait for preceding kernels.
  __device__ void Run(bool weights_are_ready) {
    if (weights_are_ready) {
      ahead_ = min(tiles_.steps, Shape::kStages);
      tiles_.At<Shape>(LinearCluster::Item(), [&](int row, int out) {
        for (int i = 0; i < ahead_; ++i) LoadKernel(i * Shape::kStageCols, row, out, i);
      });
    }
    WaitForDependencies();
    tiles_.ForEach<Shape>([&](int row, int out) {
#pragma unroll 1
      for (int step = 0; step < tiles_.steps; ++step) Load(step * Shape::kStageCols, row, out);
    });
  }

 private:
  // A stage is free when both blocks have multiplied it: each writes a part of the other's.
  __device__ void Load(int col, int row, int out) {
    const int stage = slot_.index;
    if (ahead_ > 0) {
      --ahead_;
    } else {
      shared_.empty[stage].Wait(slot_.parity ^ 1);
      LoadKernel(col, row, out, stage);
    }
    if (HasRows(row)) {
#pragma unroll
      for (int box = 0; box < Shape::kBoxes; ++box) {
        TmaLoad(SharedAddress(shared_.x[stage][box]), maps_.x, col + box * Shape::kCols, row, 0, 0,
                shared_.full[stage]);
      }
    }
    slot_.Advance();
  }

  // A block behind the last row copies for the other alone. Nobody sees what it multiplies; rows of
  // zeros, which TMA has for it, would take longer to come than others.
  __device__ bool HasRows(int row) const { return row < tiles_.rows; }

  // What it copies may land at the other block before that expects it; the other's phase ends after
  // both.
  __device__ void LoadKernel(int col, int row, int out, int stage) {
    const int part = LinearCluster::Rank() * Shape::kPartOuts;
    Barrier& full = shared_.full[stage];
    const int box_bytes = Shape::kOutBytes + (HasRows(row) ? Shape::kRowBytes : 0);
    full.ArriveExpecting(Shape::kBoxes * box_bytes);
#pragma unroll
    for (int box = 0; box < Shape::kBoxes; ++box) {
      TmaLoadMulticast(SharedAddress(shared_.kernel[stage][box]) + part * Shape::kSpan,
                       maps_.kernel, col + box * Shape::kCols, out + part, 0, 0, full,
                       (1 << kLinearBlocks) - 1);
    }
  }

  const LinearMaps& maps_;
  const LinearTiles& tiles_;
  LinearShared<Shape>& shared_;
  RingSlot<Shape::kStages> slot_;
  int ahead_ = 0;  // stages whose weights are under way
};

}  // namespace eet
