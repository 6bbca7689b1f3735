// Sampling on the GPU. One cluster of blocks per row; thresholds by histograms of the ordered
// logits, whose integer sums are exact in any order.
#include <algorithm>
#include <cstring>

#include "core/cluster.cuh"
#include "core/reduce.cuh"
#include "core/vector.cuh"
#include "ops/sample.h"

namespace eet {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpSize;
static_assert(kWarps == kWarpSize && kDigitValues == 2 * kThreads);

// The best rank and the probabilities' sum of some tokens.
struct Survey {
  uint64_t best;
  LogSumExp sum;

  static __device__ Survey Empty() { return {0, LogSumExp::Empty()}; }

  __device__ void Merge(const Survey& other) {
    best = std::max(best, other.best);
    sum.Merge(other.sum);
  }
};

struct SharedState {
  uint64_t histogram[kDigitValues];
  uint64_t warp_sums[kWarps];
  Survey warp_surveys[kWarps];
  Survey surveys[2];  // this block's: of all logits, of the draw
  uint64_t above;
  uint32_t digit;
};

// Calls f(first token, logits, penalized logits) for every kWidth tokens of this thread.
template <int kWidth, typename F>
__device__ void ForEachPack(const SampleRow& row, const F& f) {
  struct alignas(kWidth * sizeof(float)) Logits {
    float values[kWidth];
  };
  struct alignas(kWidth) Seen {
    uint8_t values[kWidth];
  };
  const Logits* logits = reinterpret_cast<const Logits*>(row.logits);
  const Seen* seen = reinterpret_cast<const Seen*>(row.seen);
  const int64_t packs = row.vocab / kWidth;
  for (int64_t i = Cluster::Rank() * kThreads + threadIdx.x; i < packs;
       i += Cluster::kSize * kThreads) {
    const Logits pack = logits[i];
    const Seen is_seen = seen ? seen[i] : Seen{};
    float penalized[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      penalized[j] = row.Penalized(pack.values[j], is_seen.values[j]);
    }
    f(i * kWidth, pack.values, penalized);
  }
}

__device__ Survey ShuffleXor(const Survey& survey, int offset) {
  Survey other;
  other.best = __shfl_xor_sync(kFullMask, survey.best, offset);
  other.sum.max = __shfl_xor_sync(kFullMask, survey.sum.max, offset);
  other.sum.sum = __shfl_xor_sync(kFullMask, survey.sum.sum, offset);
  return other;
}

__device__ Survey WarpMerge(Survey survey) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    survey.Merge(ShuffleXor(survey, offset));
  }
  return survey;
}

// Every thread gets the merged survey of the cluster, blocks in the order of their ranks.
__device__ Survey ClusterMerge(Survey survey, SharedState& shared, int stage) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  survey = WarpMerge(survey);
  if (lane == 0) shared.warp_surveys[warp] = survey;
  __syncthreads();
  if (warp == 0) {
    survey = WarpMerge(shared.warp_surveys[lane]);
    if (lane == 0) shared.surveys[stage] = survey;
  }
  Cluster::Sync();
  Survey merged = Survey::Empty();
  for (int rank = 0; rank < Cluster::kSize; ++rank) {
    merged.Merge(Cluster::Shared(shared.surveys[stage], rank));
  }
  return merged;
}

__device__ uint64_t WarpInclusiveSum(uint64_t value) {
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const uint64_t lower = __shfl_up_sync(kFullMask, value, offset);
    if (threadIdx.x % kWarpSize >= offset) value += lower;
  }
  return value;
}

// The sum of `value` over this thread and those before it in the block.
__device__ uint64_t BlockInclusiveSum(uint64_t value, SharedState& shared, uint64_t* total) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  value = WarpInclusiveSum(value);
  if (lane == kWarpSize - 1) shared.warp_sums[warp] = value;
  __syncthreads();
  const uint64_t warps = WarpInclusiveSum(shared.warp_sums[lane]);
  *total = __shfl_sync(kFullMask, warps, kWarps - 1);
  const uint64_t before = __shfl_sync(kFullMask, warps, std::max(warp - 1, 0));
  return warp == 0 ? value : before + value;
}

// Shared memory adds 32 bits natively, 64 bits only by compare and swap.
__device__ void AtomicAddShared(uint64_t* sum, uint64_t value) {
  uint32_t* words = reinterpret_cast<uint32_t*>(sum);
  const uint32_t low = uint32_t(value);
  const uint32_t before = atomicAdd(&words[0], low);
  const uint32_t high = uint32_t(value >> 32) + (before + low < before);
  if (high != 0) atomicAdd(&words[1], high);
}

// The largest image so that the weights of all images from it up, none below `least`, reach
// goal(sum of the weights). Equal in all threads of the cluster.
template <int kWidth, typename Weight, typename Goal>
__device__ uint32_t Threshold(const SampleRow& row, SharedState& shared, uint32_t least,
                              const Weight& weight, const Goal& goal_of) {
  uint32_t prefix = 0;
  uint64_t above = 0, goal = 0;
  for (int i = 0; i < kDigits; ++i) {
    for (int value = threadIdx.x; value < kDigitValues; value += kThreads) {
      shared.histogram[value] = 0;
    }
    __syncthreads();
    ForEachPack<kWidth>(row, [&](int64_t, const float*, const float* logits) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const uint32_t image = OrderedImage(logits[j]);
        if (image < least || !SameAbove(DigitEdge(i), image, prefix)) continue;
        AtomicAddShared(&shared.histogram[Digit(image, i)], weight(logits[j]));
      }
    });
    Cluster::Sync();
    const int value = kDigitValues - 1 - 2 * int(threadIdx.x);  // and the one below
    uint64_t first = 0, second = 0, total;
    for (int rank = 0; rank < Cluster::kSize; ++rank) {
      first += Cluster::Shared(shared.histogram[value], rank);
      second += Cluster::Shared(shared.histogram[value - 1], rank);
    }
    const uint64_t through = above + BlockInclusiveSum(first + second, shared, &total);
    const uint64_t before = through - first - second;
    if (i == 0) goal = goal_of(total);
    if (before < goal && through >= goal) {  // in one thread
      const bool is_first = before + first >= goal;
      shared.digit = is_first ? value : value - 1;
      shared.above = is_first ? before : before + first;
    }
    Cluster::Sync();  // the digit is there, and nobody reads the histograms any more
    prefix |= shared.digit << DigitEdge(i + 1);
    above = shared.above;
  }
  return prefix;
}

// The smallest kept image, min-p aside.
template <int kWidth>
__device__ uint32_t Threshold(const SampleRow& row, SharedState& shared, float max) {
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
__device__ uint64_t Draw(const SampleRow& row, uint32_t least, float max) {
  uint64_t best = 0;
  ForEachPack<kWidth>(row, [&](int64_t token, const float*, const float* logits) {
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

// Vectors of kWidth logits where rows are aligned, else one.
template <int kWidth>
__global__ void EET_CLUSTER __launch_bounds__(kThreads) SampleKernel(SampleArgs args) {
  if (Cluster::Rank() >= Cluster::kSize) return;
  __shared__ SharedState shared;
  const int64_t index = Cluster::Item();
  const SampleRow row(args, index);

  Survey survey = Survey::Empty();
  ForEachPack<kWidth>(row, [&](int64_t token, const float* logits, const float* penalized) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      survey.best = std::max(survey.best, Rank(penalized[j], token + j));
      survey.sum.Push(logits[j]);
    }
  });
  survey = ClusterMerge(survey, shared, 0);
  uint64_t best = survey.best;
  const float max = RankScore(best);
  if (!row.IsGreedy(max)) {
    const uint32_t least = Threshold<kWidth>(row, shared, max);
    Survey drawn = Survey::Empty();
    drawn.best = Draw<kWidth>(row, least, max);
    best = ClusterMerge(drawn, shared, 1).best;
  }
  if (Cluster::Rank() == 0 && threadIdx.x == 0) {
    args.tokens[index] = RankToken(best);
    args.logprobs[index] = survey.sum.LogProbability(row.logits[RankToken(best)]);
  }
  Cluster::Sync();  // no block may leave while another reads its shared memory
}

void Sample(Stream stream, const SampleArgs& args) {
  if (args.rows == 0) return;
  const bool aligned = args.vocab % 4 == 0 && IsAligned16(args.logits) && IsAligned16(args.seen);
  auto kernel = aligned ? SampleKernel<4> : SampleKernel<1>;
  kernel<<<args.rows * kClusterBlocks, kThreads, 0, stream>>>(args);
}

}  // namespace eet
