// How linear on Hopper brings 16-bit results from registers to memory: through shared memory, from
// where TMA writes whole rows of 128 bytes.
#pragma once

#include "core/instructions.cuh"
#include "core/lanes.cuh"
#include "core/mma.cuh"
#include "ops/linear_prefill_sm90_shape.cuh"

namespace eet {

// By a warpgroup, 64 rows and 64 columns at a time. While one part is being copied the
// next one is written behind it; nobody waits for memory.
template <class Shape>
class LinearStore {
  static constexpr int kPieces = Shape::kStoreCols / 8;  // of 16 bytes, in a row of a part

 public:
  __device__ LinearStore(LinearShared<Shape>& shared, const CUtensorMap& y, int group)
      : y_(y), parts_(shared.results[group]), group_(group) {}

  // A part of the rows from `row` on, the group's first, and columns from `col` on. Words
  // [2 * n + i] are, of each eight columns n, the pair of this lane in row lane / 4 + 8 * i of the
  // warp's sixteen.
  __device__ __forceinline__ void StorePairs(const uint32_t (&words)[2 * kPieces], int row,
                                             int col) {
    const uint32_t part = Begin();
    const int lane = threadIdx.x % kWarpSize;
    const int part_row = WarpRow() + lane % 16, second = lane / 16;
#pragma unroll
    for (int n = 0; n < kPieces; n += 2) {
      StoreMatrices({words[2 * n], words[2 * n + 1], words[2 * n + 2], words[2 * n + 3]},
                    part + Piece(part_row, n + second));
    }
    End(row, col);
  }

  // The same in pieces of eight columns: [j][i] is piece 4 * j + lane % 4 in that row.
  __device__ __forceinline__ void StorePieces(const uint4 (&pieces)[kPieces / 4][2], int row,
                                              int col) {
    const uint32_t part = Begin();
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int j = 0; j < kPieces / 4; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        StoreShared(part + Piece(WarpRow() + lane / 4 + 8 * i, 4 * j + lane % 4), pieces[j][i]);
      }
    }
    End(row, col);
  }

  // Before the block ends.
  __device__ __forceinline__ void Drain() const {
    if (IsLeader()) WaitTmaStores<0>();
  }

 private:
  // Where the next part may be written: the copy of the one before the last has read its own.
  __device__ __forceinline__ uint32_t Begin() {
    if (IsLeader()) WaitTmaStores<1>();
    Sync();
    return SharedAddress(parts_[which_]);
  }

  __device__ __forceinline__ void End(int row, int col) {
    FenceAsyncProxy();
    Sync();
    if (IsLeader()) TmaStore(y_, SharedAddress(parts_[which_]), col, row, 0, 0);
    which_ ^= 1;
  }

  // Offset of a 16-byte piece of a row in a part, permuted as TMA's swizzle has it.
  __device__ __forceinline__ static uint32_t Piece(int row, int piece) {
    return row * (Shape::kStoreCols * 2) + ((piece ^ row % 8) << 4);
  }

  __device__ __forceinline__ static int WarpRow() {
    return threadIdx.x % kGroupThreads / kWarpSize * 16;
  }

  __device__ __forceinline__ static bool IsLeader() { return threadIdx.x % kGroupThreads == 0; }

  // A barrier of the warpgroup.
  __device__ __forceinline__ void Sync() const { WaitAtBarrier<kGroupThreads>(1 + group_); }

  const CUtensorMap& y_;
  char (&parts_)[2][Shape::kStoreBytes];
  const int group_;
  int which_ = 0;
};

}  // namespace eet
