// Rows too large for the registers of a block, on Hopper: a persistent kernel, one block per
// multiprocessor, alone or in clusters of two or four that share a row.
//
//   * One thread issues bulk copies of the block's part of each row into a ring of chunks in shared
//     memory, as far ahead as the ring allows: the next rows arrive while one is summed and
//     written, and memory never waits for sums.
//   * The others take a row into registers and free its chunks at once. They sum and write it from
//     there: shared memory read for each sum again took longer than the row takes to come.
//   * A block's columns are the same in every row, so scale and bias are copied once, behind the
//     first row; with each row they would be as much traffic again in L2.
//   * A sum takes one exchange, between all warps of the cluster: each stores its own in every
//     block, whose barrier counts them in. Barriers of the cluster would wait for memory.
#pragma once

#include <bit>

#include "core/cluster.cuh"
#include "core/ring.cuh"
#include "core/round.h"
#include "core/row.cuh"
#include "core/tma.cuh"

namespace eet {

constexpr int kStreamedPacks = 8;  // vectors of a thread, and chunks of a block's part of a row

// Rows of at most kMostPacks vectors. Each is summed in the same order, whatever the others are.
template <typename T, int kBlocks>
class StreamedRow {
 public:
  static constexpr int kThreads = kRowThreads + kWarpSize;  // the last warp issues copies
  static constexpr int kLeastBlocks = 1;                    // that a multiprocessor holds
  static constexpr int64_t kMostPacks = int64_t{kBlocks} * kStreamedPacks * kRowThreads;

  static constexpr int kSlots = 12;
  static constexpr int kWarps = kRowThreads / kWarpSize, kSums = kBlocks * kWarps;

  struct Shared {
    alignas(128) uint4 chunks[kSlots][kRowThreads];
    uint4 scale[kStreamedPacks][kRowThreads], bias[kStreamedPacks][kRowThreads];
    float sums[2][kSums];  // of warps, for this exchange and the next
    Barrier full[kSlots], empty[kSlots], weights_full, summed[2];
  };

  // Calls work(row) for each row of this block's cluster.
  template <typename F>
  static __device__ void ForEach(const RowOperands<T>& rows, const F& work) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(128) char memory[];
    auto& shared = *reinterpret_cast<Shared*>(memory);
    if (threadIdx.x == 0) InitBarriers(shared);
    Team::Await();  // the barriers are visible: InitBarriers sees to that
    if (rows.launches_dependents_early) LaunchDependents();
    WaitForDependencies();
    LaunchDependents();
    if (threadIdx.x < kRowThreads) {
      StreamedRow row(rows, shared);
      for (int64_t i = Team::Item(); i < rows.rows; i += Teams()) {
        row.Take();
        work(row);
        row.y_ += Teams() * rows.cols;
      }
    } else if (threadIdx.x == kRowThreads) {
      Load(rows, shared);
    }
#endif
  }

  // The sum of `term` of each element.
  template <typename F>
  __device__ float Sum(const F& term) {
    float sum = 0;
    Each([&](int i) { sum = AddTerms(sum, As(Anew(values_[i])), term); });
    return Exchange(WarpReduce<eet::Sum>(sum));
  }

  // y = element(x, scale, bias).
  template <typename F>
  __device__ void Write(const F& element) {
    shared_.weights_full.Wait(0);
    Each([&](int i) {
      const Vector<T> scale = As(shared_.scale[i][threadIdx.x]);
      const Vector<T> bias = As(shared_.bias[i][threadIdx.x]);
      StoreVector(y_ + i * kChunk, MapElements(As(Anew(values_[i])), scale, bias, element));
    });
  }

 private:
  static constexpr int kWidth = Vector<T>::kSize, kChunk = kRowThreads * kWidth;
  using Team = ClusterOf<kBlocks>;

  // The columns of this block: where they begin, and how many vectors they are.
  struct Part {
    int64_t begin;
    int packs;

    static __device__ Part OfThisBlock(int64_t cols) {
      const int packs = int(cols / kWidth), share = CeilDiv(packs, kBlocks);
      const int first = Team::Rank() * share;
      return {.begin = int64_t{first} * kWidth, .packs = min(share, packs - first)};
    }

    // Calls work(i, its first vector, its bytes) for each chunk.
    template <typename F>
    __device__ void ForEachChunk(const F& work) const {
      for (int i = 0, first = 0; first < packs; ++i, first += kRowThreads) {
        work(i, first, min(packs - first, kRowThreads) * int(sizeof(uint4)));
      }
    }
  };

  static __device__ int Teams() { return int(gridDim.x) / kBlocks; }

  static __device__ void InitBarriers(Shared& shared) {
    for (int i = 0; i < kSlots; ++i) {
      shared.full[i].Init(1);
      shared.empty[i].InitForWarps(kWarps);
    }
    shared.weights_full.Init(1);
    for (Barrier& summed : shared.summed) {
      if constexpr (kBlocks == 1) summed.InitForWarps(kWarps);
      if constexpr (kBlocks > 1) summed.Init(1);
    }
    FenceBarrierInit();
  }

  static __device__ void Load(const RowOperands<T>& rows, Shared& shared) {
    const Part part = Part::OfThisBlock(rows.cols);
    RingSlot<kSlots> slot;
    for (int64_t row = Team::Item(); row < rows.rows; row += Teams()) {
      const T* x = rows.x + row * rows.cols + part.begin;
      part.ForEachChunk([&](int, int first, int bytes) {
        Barrier& full = shared.full[slot.index];
        shared.empty[slot.index].Wait(slot.parity ^ 1);
        full.ArriveExpecting(bytes);
        BulkCopy(shared.chunks[slot.index], x + first * kWidth, bytes, full);
        slot.Advance();
      });
      if (row == Team::Item()) LoadWeights(rows, part, shared);
    }
  }

  static __device__ void LoadWeights(const RowOperands<T>& rows, const Part& part, Shared& shared) {
    Barrier& full = shared.weights_full;
    full.ArriveExpecting((rows.bias ? 2 : 1) * part.packs * int(sizeof(uint4)));
    part.ForEachChunk([&](int i, int first, int bytes) {
      const int64_t at = part.begin + first * kWidth;
      BulkCopy(shared.scale[i], rows.scale + at, bytes, full);
      if (rows.bias) BulkCopy(shared.bias[i], rows.bias + at, bytes, full);
    });
  }

  __device__ StreamedRow(const RowOperands<T>& rows, Shared& shared)
      : shared_(shared), packs_(Part::OfThisBlock(rows.cols).packs) {
    const int64_t first = Part::OfThisBlock(rows.cols).begin + int(threadIdx.x) * kWidth;
    y_ = rows.y + Team::Item() * rows.cols + first;
    if (rows.bias) return;
    Each([&](int i) { shared.bias[i][threadIdx.x] = {}; });
  }

  static __device__ Vector<T> As(const uint4& words) { return std::bit_cast<Vector<T>>(words); }

  // Whether the thread has a vector in chunk i.
  __device__ bool Has(int i) const { return int(threadIdx.x) + i * kRowThreads < packs_; }

  // Calls work(i) for each chunk in which it has one.
  template <typename F>
  __device__ void Each(const F& work) const {
#pragma unroll
    for (int i = 0; i < kStreamedPacks; ++i) {
      if (Has(i)) work(i);
    }
  }

  // Takes the next row out of the ring. By whole warps: also those without a vector free a chunk.
  __device__ void Take() {
#pragma unroll
    for (int i = 0; i < kStreamedPacks; ++i) {
      if (i * kRowThreads >= packs_) continue;
      shared_.full[slot_.index].Wait(slot_.parity);
      if (Has(i)) values_[i] = shared_.chunks[slot_.index][threadIdx.x];
      __syncwarp();
      shared_.empty[slot_.index].ArriveAsWarp(threadIdx.x % kWarpSize);
      slot_.Advance();
    }
  }

  // The sum of the warps' sums. Two places take turns: who stores in this one has seen the sum
  // before, to which every warp came when it had read the one in this place.
  __device__ float Exchange(float sum) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    float (&sums)[kSums] = shared_.sums[exchange_.index];
    Barrier& summed = shared_.summed[exchange_.index];
    if constexpr (kBlocks == 1) {  // no cluster: its instructions are illegal
      if (lane == 0) sums[warp] = sum;
      summed.ArriveAsWarp(lane);
    } else {
      if (threadIdx.x == 0) summed.ArriveExpecting(sizeof(sums));
      if (lane < kBlocks) StoreAt(lane, sums[Team::Rank() * kWarps + warp], sum, summed);
    }
    summed.Wait(exchange_.parity);
    exchange_.Advance();
    sum = 0;
    for (int i = lane; i < kSums; i += kWarpSize) sum += sums[i];
    return WarpReduce<eet::Sum>(sum);
  }

  Shared& shared_;
  const int packs_;
  T* y_;                   // the thread's first vector of the row
  RingSlot<kSlots> slot_;  // of the next row's first chunk
  RingSlot<2> exchange_;
  uint4 values_[kStreamedPacks];  // the thread's of the row, as they lie in memory
};

}  // namespace eet
