// Drawing the token of a row on the GPU, by a cluster of blocks; thresholds by histograms of the
// ordered logits, whose integer sums are exact in any order.
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
constexpr int kThreadValues = kDigitValues / kSampleThreads;
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

struct SampleShared {
  uint64_t histogram[kDigitValues];
  uint64_t warp_sums[kSampleWarps];
  Survey warp_surveys[kSampleWarps];
  Survey surveys[2];  // this block's: of all logits, of the draw
  uint64_t above;
  uint32_t digit;
};

// Calls f(first token, logits, penalized logits) for every kWidth tokens of this thread; kAtOnce of
// these packs are under way from memory together.
template <int kWidth, int kAtOnce = 2, typename F>
__device__ void ForEachPack(const SampleRow& row, const F& f) {
  struct alignas(kWidth * sizeof(float)) Logits {
    float values[kWidth];
  };
  struct alignas(kWidth) Seen {
    uint8_t values[kWidth];
  };
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

// Every lane gets the merged survey of the warp.
__device__ inline Survey WarpMerge(const Survey& survey) {
  const LogSumExp& mine = survey.sum;
  const float max = FromOrderedImage(__reduce_max_sync(kFullMask, OrderedImage(mine.max)));
  const float sum = mine.max == max ? mine.sum : mine.sum * expf(mine.max - max);
  return {WarpMax(survey.best), {max, WarpReduce<Sum>(sum)}};
}

// Every thread gets the merged survey of the cluster.
__device__ inline Survey ClusterMerge(const Survey& survey, SampleShared& shared, int stage) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const Survey of_warp = WarpMerge(survey);
  if (lane == 0) shared.warp_surveys[warp] = of_warp;
  __syncthreads();
  if (warp == 0) {
    const bool exists = lane < kSampleWarps;
    const Survey of_block = WarpMerge(exists ? shared.warp_surveys[lane] : Survey::Empty());
    if (lane == 0) shared.surveys[stage] = of_block;
  }
  Cluster::Sync();
  Survey of_rank = Survey::Empty();
  if (lane < Cluster::kSize) of_rank = Cluster::Shared(shared.surveys[stage], lane);
  return WarpMerge(of_rank);
}

__device__ inline uint64_t WarpInclusiveSum(uint64_t value) {
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const uint64_t lower = __shfl_up_sync(kFullMask, value, offset);
    if (threadIdx.x % kWarpSize >= offset) value += lower;
  }
  return value;
}

// The sum of `value` over this thread and those before it in the block.
__device__ inline uint64_t BlockInclusiveSum(uint64_t value, SampleShared& shared,
                                             uint64_t* total) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  value = WarpInclusiveSum(value);
  if (lane == kWarpSize - 1) shared.warp_sums[warp] = value;
  __syncthreads();
  const uint64_t warps = WarpInclusiveSum(lane < kSampleWarps ? shared.warp_sums[lane] : 0);
  *total = __shfl_sync(kFullMask, warps, kSampleWarps - 1);
  const uint64_t before = __shfl_sync(kFullMask, warps, std::max(warp - 1, 0));
  return warp == 0 ? value : before + value;
}

// Shared memory adds 32 bits natively, 64 bits only by compare and swap.
__device__ inline void AtomicAddShared(uint64_t* sum, uint64_t value) {
  uint32_t* words = reinterpret_cast<uint32_t*>(sum);
  const uint32_t low = uint32_t(value);
  const uint32_t before = atomicAdd(&words[0], low);
  const uint32_t high = uint32_t(value >> 32) + (before + low < before);
  if (high != 0) atomicAdd(&words[1], high);
}

// The largest image so that the weights of all images from it up, none below `least`, reach
// goal(sum of the weights). Equal in all threads of the cluster.
template <int kWidth, typename Weight, typename Goal>
__device__ uint32_t Threshold(const SampleRow& row, SampleShared& shared, uint32_t least,
                              const Weight& weight, const Goal& goal_of) {
  uint32_t prefix = 0;
  uint64_t above = 0, goal = 0;
  for (int i = 0; i < kDigits; ++i) {
    for (int value = threadIdx.x; value < kDigitValues; value += kSampleThreads) {
      shared.histogram[value] = 0;
    }
    __syncthreads();
    ForEachPack<kWidth>(row, [&](int64_t, const auto&, const auto& logits) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const uint32_t image = OrderedImage(logits[j]);
        if (image < least || !SameAbove(DigitEdge(i), image, prefix)) continue;
        AtomicAddShared(&shared.histogram[Digit(image, i)], weight(logits[j]));
      }
    });
    Cluster::Sync();
    // This thread's values are this one and the ones below.
    const int value = kDigitValues - 1 - kThreadValues * int(threadIdx.x);
    uint64_t sums[kThreadValues] = {}, mine = 0, total;
#pragma unroll 4  // more do not fit the registers
    for (int rank = 0; rank < Cluster::kSize; ++rank) {
#pragma unroll
      for (int j = 0; j < kThreadValues; ++j) {
        sums[j] += Cluster::Shared(shared.histogram[value - j], rank);
      }
    }
#pragma unroll
    for (int j = 0; j < kThreadValues; ++j) mine += sums[j];
    uint64_t through = above + BlockInclusiveSum(mine, shared, &total) - mine;
    if (i == 0) goal = goal_of(total);
#pragma unroll
    for (int j = 0; j < kThreadValues; ++j) {
      const uint64_t before = through;
      through += sums[j];
      if (before < goal && through >= goal) {  // of one value of one thread
        shared.digit = value - j;
        shared.above = before;
      }
    }
    Cluster::Sync();  // the digit is there, and nobody reads the histograms any more
    prefix |= shared.digit << DigitEdge(i + 1);
    above = shared.above;
  }
  return prefix;
}

// The smallest kept image, min-p aside.
template <int kWidth>
__device__ uint32_t Threshold(const SampleRow& row, SampleShared& shared, float max) {
  uint32_t least = 0;
  if (row.FiltersByRank()) {
    least = Threshold<kWidth>(
        row, shared, least, [](float) { return uint64_t{1}; },
        [&](uint64_t) { return uint64_t(row.top_k); });
  }
  if (row.FiltersByMass()) {
    least = Threshold<kWidth>(
        row, shared, least, [&](float logit) { return row.Mass(row.Scaled(logit, max)); },
        [&](uint64_t total) { return row.MassGoal(total); });
  }
  return least;
}

// The random bits of kWidth tokens from `first` on.
template <int kWidth>
__device__ void RandomBits(const SampleRow& row, int64_t first, uint32_t (&bits)[kWidth]) {
  if constexpr (kWidth == 1) {
    const RandomPair pair = row.Bits(first / 2);
    bits[0] = first % 2 == 0 ? pair.first : pair.second;
  } else {
#pragma unroll
    for (int j = 0; j < kWidth; j += 2) {
      const RandomPair pair = row.Bits((first + j) / 2);
      bits[j] = pair.first;
      bits[j + 1] = pair.second;
    }
  }
}

// This thread's best token of those kept.
template <int kWidth>
__device__ uint64_t BestKept(const SampleRow& row, uint32_t least, float max) {
  uint64_t best = 0;
  ForEachPack<kWidth>(row, [&](int64_t token, const auto&, const auto& logits) {
    bool any = false;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) any |= OrderedImage(logits[j]) >= least;
    if (!any) return;
    uint32_t bits[kWidth];
    RandomBits(row, token, bits);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float scaled = row.Scaled(logits[j], max);
      if (OrderedImage(logits[j]) < least || !row.PassesMinP(scaled)) continue;
      best = std::max(best, Rank(scaled + Gumbel(bits[j]), token + j));
    }
  });
  return best;
}

struct Drawn {
  int32_t token;
  LogSumExp sum;  // over the raw logits
};

// A row's token, in every thread of the cluster, by vectors of kWidth logits. No block may leave
// before Cluster::Await, while others read its shared memory.
template <int kWidth>
__device__ Drawn DrawToken(const SampleRow& row, SampleShared& shared) {
  Survey survey = Survey::Empty();
  ForEachPack<kWidth, kWidth == 1 ? 8 : 4>(
      row, [&](int64_t token, const auto& logits, const auto& penalized) {
        survey.Push(token, logits, penalized);
      });
  survey = ClusterMerge(survey, shared, 0);
  const float max = RankScore(survey.best);
  if (row.IsGreedy(max)) return {RankToken(survey.best), survey.sum};
  Survey drawn = Survey::Empty();
  drawn.best = BestKept<kWidth>(row, Threshold<kWidth>(row, shared, max), max);
  return {RankToken(ClusterMerge(drawn, shared, 1).best), survey.sum};
}

// Whether rows can be read in vectors of four logits.
inline bool InVectors(const SampleArgs& args) {
  return args.vocab % 4 == 0 && IsAligned16(args.logits) && IsAligned16(args.seen);
}

}  // namespace eet
