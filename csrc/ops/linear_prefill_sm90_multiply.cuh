// The warpgroups of linear on Hopper that multiply, 64 rows each, and finish what they multiplied.
#pragma once

#include "core/lanes.cuh"
#include "ops/linear_prefill_sm90_store.cuh"

namespace eet {

// A thread's sums of a tile, as core/wgmma.cuh deals them.
template <class Shape>
using LinearSums = float[Shape::kOuts / 2];

// Epilogue(args, row, out) is made for a tile, with the group's first row and the tile's first
// output. Its Begin gives the sums their first values, its Finish gets the last ones, and a way to
// store them.
template <class Shape, class Epilogue>
class LinearMultiplier {
 public:
  __device__ LinearMultiplier(const typename Epilogue::Args& args, const LinearTiles& tiles,
                              LinearShared<Shape>& shared, const CUtensorMap& y, int group)
      : args_(args), tiles_(tiles), shared_(shared), group_(group), store_(shared, y, group) {}

  __device__ __forceinline__ void Run() {
    tiles_.ForEach<Shape>([&](int row, int out) {
      Epilogue epilogue(args_, row + group_ * kGroupRows, out);
      LinearSums<Shape> sums = {};
      epilogue.Begin(sums);
      Pin(sums);  // products add to registers, not to what the compiler knows of them
      Multiply(sums);
      epilogue.Finish(sums, store_);
    });
    store_.Drain();
  }

 private:
  __device__ __forceinline__ void Multiply(LinearSums<Shape>& sums) {
    Start(sums);
#pragma unroll 1
    for (int step = 1; step < tiles_.steps; ++step) {
      const int before = slot_.index;
      slot_.Advance();
      Start(sums);
      WgmmaWait<1>();
      Release(before);
    }
    WgmmaWait<0>(sums);
    Release(slot_.index);
    slot_.Advance();
  }

  // Starts sums += x kernel' of a stage.
  __device__ __forceinline__ void Start(LinearSums<Shape>& sums) {
    using Step = Wgmma<typename Shape::T, Shape::kOuts>;
    const int stage = slot_.index;
    shared_.full[stage].Wait(slot_.parity);
    const uint64_t x = WgmmaDescriptor<Shape::kSpan>(SharedAddress(shared_.x[stage]) +
                                                     group_ * kGroupRows * Shape::kSpan);
    const uint64_t kernel = WgmmaDescriptor<Shape::kSpan>(SharedAddress(shared_.kernel[stage]));
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < Shape::kStageCols; k += 16) {
      const int box = k / Shape::kCols, bytes = k % Shape::kCols * int(sizeof(typename Shape::T));
      Step::FromShared(sums, x + (box * Shape::kRowBytes + bytes) / 16,
                       kernel + (box * Shape::kOutBytes + bytes) / 16, true);
    }
    WgmmaCommit();
  }

  // Tells both blocks' loaders, a lane each.
  __device__ __forceinline__ void Release(int index) {
    const int lane = threadIdx.x % kWarpSize;
    if (lane < kLinearBlocks) shared_.empty[index].ArriveAt(lane);
  }

  const typename Epilogue::Args& args_;
  const LinearTiles& tiles_;
  LinearShared<Shape>& shared_;
  const int group_;
  LinearStore<Shape> store_;
  RingSlot<Shape::kStages> slot_;
};

}  // namespace eet
