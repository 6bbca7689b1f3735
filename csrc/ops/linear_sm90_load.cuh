// The thread of linear on Hopper that orders copies.
#pragma once

#include "ops/linear_sm90_shape.cuh"

namespace eet {

// How the copy engine finds x and kernel: boxes of kCols columns, zeros beyond the last. And y,
// where results have 16 bits.
struct LinearMaps {
  CUtensorMap x, kernel, y;  // (in, rows, 1, 1), (in, out, 1, 1) and (columns, rows, 1, 1)
};

template <class Shape>
class LinearLoader {
 public:
  __device__ LinearLoader(const LinearMaps& maps, const LinearTiles& tiles,
                          LinearShared<Shape>& shared)
      : maps_(maps), tiles_(tiles), shared_(shared) {}

  __device__ void Run() {
    tiles_.ForEach<Shape>([&](int row, int out) {
#pragma unroll 1
      for (int step = 0; step < tiles_.steps; ++step) Load(step * Shape::kCols, row, out);
    });
  }

 private:
  // A stage is free when both blocks have multiplied it: each writes a part of the other's. What it
  // copies may land there before the other expects it; the other's phase ends after both.
  __device__ void Load(int col, int row, int out) {
    const int rank = LinearCluster::Rank();
    Barrier& full = shared_.full[slot_.index];
    shared_.empty[slot_.index].Wait(slot_.parity ^ 1);
    full.ArriveExpecting(Shape::kRowBytes + Shape::kOutBytes);
    CopyBox(SharedAddress(shared_.x[slot_.index]), maps_.x, col, row, 0, 0, full);
    const int part = rank * Shape::kPartOuts;
    CopyBoxToCluster(SharedAddress(shared_.kernel[slot_.index]) + part * Shape::kSpan, maps_.kernel,
                     col, out + part, 0, 0, full, (1 << kLinearBlocks) - 1);
    slot_.Advance();
  }

  const LinearMaps& maps_;
  const LinearTiles& tiles_;
  LinearShared<Shape>& shared_;
  RingSlot<Shape::kStages> slot_;
};

}  // namespace eet
