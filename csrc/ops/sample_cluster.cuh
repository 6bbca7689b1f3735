// What a cluster of blocks does together to draw the token of a row on the GPU: reading the logits,
// and merging what the threads found. All sums are of integers and exact in any order, but the
// softmax's.
#pragma once

#include <algorithm>

#include "core/cluster.cuh"
#include "core/reduce.cuh"
#include "core/vector.cuh"
#include "ops/sample.h"
#include "ops/softmax.h"

namespace eet {

// A block has few threads, each with many logits: a thread's instructions beside those count more
// than its logits.
constexpr int kSampleThreads = 512;
constexpr int kSampleWarps = kSampleThreads / kWarpSize;
constexpr int kSampleBlocks = 2;  // on a multiprocessor
static_assert(kSampleWarps <= kWarpSize);

// The best rank and the probabilities' sum of some tokens.
struct Survey {
  uint64_t best;
  LogSumExp sum;

  static __device__ Survey Empty() { return {0, LogSumExp::Empty()}; }

  // Takes in tokens from `first` on, later ones than before. In few instructions: whoever decodes
  // greedily waits for nothing else.
  template <int kWidth>
  __device__ void Push(int64_t first, const float (&logits)[kWidth],
                       const float (&penalized)[kWidth]) {
    float score = penalized[0], max = fmaxf(sum.max, logits[0]);  // NaN shows in the sum
#pragma unroll
    for (int j = 1; j < kWidth; ++j) {
      score = fmaxf(score, penalized[j]);
      max = fmaxf(max, logits[j]);
    }
    if (OrderedImage(score) > uint32_t(best >> 32)) {
      int at = kWidth - 1;
#pragma unroll
      for (int j = kWidth - 2; j >= 0; --j) at = penalized[j] == score ? j : at;
      best = Rank(score, first + at);
    }
    if (max > sum.max) sum = {max, sum.sum * Exp2(kLog2E * (sum.max - max))};
    const float origin = max == -INFINITY ? 0.0f : max;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum.sum += Exp2(kLog2E * (logits[j] - origin));
  }
};

// The best rank, and a sum of Mass, of some tokens.
struct Tally {
  uint64_t best, mass;

  static __device__ Tally Empty() { return {0, 0}; }
};

// How many tokens reach each of some thresholds.
constexpr int kThresholds = 7;

struct Counts {
  uint32_t reach[kThresholds];

  static __device__ Counts Empty() { return {}; }
};

// Sums of Mass, and whether some of the collected tokens were lost.
struct Masses {
  uint64_t all, collected;
  uint32_t lost;

  static __device__ Masses Empty() { return {}; }
};

// Where a T of the whole cluster is put together. Two in turn for the blocks': while some still
// read the last one, others write the next. Nobody writes the one after before all have read.
template <typename T>
struct Merging {
  T warps[kSampleWarps];
  T blocks[2];
};

struct SampleShared {
  Merging<Survey> surveys;
  Merging<Tally> tallies;
  Merging<Counts> counts;
  Merging<Masses> masses;
  uint32_t warp_counts[2][kSampleWarps];
  uint32_t largest[kSampleThreads];    // images: of each thread's logits; 0 where it has none
  uint64_t collected[kSampleThreads];  // ranks
  LogSumExp sum;                       // of the surveys: put aside, for registers are short
  uint32_t num_collected;              // more than there is room for: the others are lost
};

// Calls f(first token, logits, penalized logits) for every kWidth tokens of this thread; kVectors
// of these packs, or twice as many single logits, are under way from memory together: as many as f
// leaves registers for.
template <int kWidth, int kVectors = 4, typename F>
__device__ void ForEachPack(const SampleRow& row, const F& f) {
  struct alignas(kWidth * sizeof(float)) Logits {
    float values[kWidth];
  };
  struct alignas(kWidth) Seen {
    uint8_t values[kWidth];
  };
  constexpr int kAtOnce = kWidth == 1 ? 2 * kVectors : kVectors;
  constexpr int64_t kStride = Cluster::kSize * kSampleThreads;
  const Logits* logits = reinterpret_cast<const Logits*>(row.logits);
  const Seen* seen = reinterpret_cast<const Seen*>(row.seen);
  const int64_t packs = row.vocab / kWidth;
  for (int64_t first = Cluster::Rank() * kSampleThreads + threadIdx.x; first < packs;
       first += kAtOnce * kStride) {
    Logits loaded[kAtOnce];
    Seen is_seen[kAtOnce] = {};
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (first + n * kStride < packs) loaded[n] = logits[first + n * kStride];
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (seen && first + n * kStride < packs) is_seen[n] = seen[first + n * kStride];
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (first + n * kStride >= packs) break;
      float penalized[kWidth];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) penalized[j] = row.Penalized(loaded[n].values[j], false);
      if (seen) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          penalized[j] = row.Penalized(loaded[n].values[j], is_seen[n].values[j]);
        }
      }
      f((first + n * kStride) * kWidth, loaded[n].values, penalized);
    }
  }
}

__device__ inline uint64_t WarpMax(uint64_t value) {
  const uint32_t high = __reduce_max_sync(kFullMask, uint32_t(value >> 32));
  const uint32_t low = uint32_t(value >> 32) == high ? uint32_t(value) : 0;
  return uint64_t{high} << 32 | __reduce_max_sync(kFullMask, low);
}

__device__ inline uint64_t WarpSum(uint64_t value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullMask, value, offset);
  }
  return value;
}

// Every lane gets what is merged of the warp's.
__device__ inline Survey WarpMerge(const Survey& survey) {
  const LogSumExp& mine = survey.sum;
  const float max = FromOrderedImage(__reduce_max_sync(kFullMask, OrderedImage(mine.max)));
  const float sum = mine.max == max ? mine.sum : mine.sum * expf(mine.max - max);
  return {WarpMax(survey.best), {max, WarpReduce<Sum>(sum)}};
}

__device__ inline Tally WarpMerge(const Tally& tally) {
  return {WarpMax(tally.best), WarpSum(tally.mass)};
}

__device__ inline Masses WarpMerge(const Masses& masses) {
  return {WarpSum(masses.all), WarpSum(masses.collected),
          __reduce_max_sync(kFullMask, masses.lost)};
}

__device__ inline Counts WarpMerge(Counts counts) {
#pragma unroll
  for (uint32_t& count : counts.reach) count = __reduce_add_sync(kFullMask, count);
  return counts;
}

// Every thread gets what is merged of the cluster's. `turn` is another than of the last call.
template <typename T>
__device__ T ClusterMerge(const T& value, Merging<T>& shared, int turn) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const T of_warp = WarpMerge(value);
  if (lane == 0) shared.warps[warp] = of_warp;
  __syncthreads();
  if (warp == 0) {
    const T of_block = WarpMerge(lane < kSampleWarps ? shared.warps[lane] : T::Empty());
    if (lane == 0) shared.blocks[turn] = of_block;
  }
  Cluster::Sync();
  T of_rank = T::Empty();
  if (lane < Cluster::kSize) of_rank = Cluster::Shared(shared.blocks[turn], lane);
  return WarpMerge(of_rank);
}

// Every thread gets the sum over the block. `turn` as above, or a block's barrier lies between.
__device__ inline uint32_t BlockSum(uint32_t value, SampleShared& shared, int turn) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  value = __reduce_add_sync(kFullMask, value);
  if (lane == 0) shared.warp_counts[turn][warp] = value;
  __syncthreads();
  return __reduce_add_sync(kFullMask, lane < kSampleWarps ? shared.warp_counts[turn][lane] : 0u);
}

}  // namespace eet
