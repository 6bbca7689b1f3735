// The largest logits of a row on the GPU. As many of the threads' largest logits as top_k give a
// bound that hardly more logits than those reach: they are collected in shared memory, and the rest
// of the draw looks at nothing else. Where they find no room there (top_k in thousands, thousands
// of equal logits), passes over the row count what reaches a threshold. For top-p as many are
// collected as find room: as a rule the others have no share in it.
#pragma once

#include "ops/sample_cluster.cuh"

namespace eet {

// A threshold in [low, high) that `wanted` of the images reach, or, for equal ones, the largest
// that more do; `low` if fewer reach any above it. Each thread of the block has some of the images,
// of which fewer reach `high`. Equal in all threads, and in all blocks of the same images. Each
// round waits once: two buffers in turn.
__device__ inline uint32_t ThresholdOf(const uint32_t (&images)[Cluster::kSize], uint32_t wanted,
                                       uint32_t low, uint32_t high, SampleShared& shared) {
  for (int turn = 0; high - low > 1; turn ^= 1) {
    const uint32_t middle = low + (high - low) / 2;
    uint32_t reach = 0;
#pragma unroll
    for (const uint32_t image : images) reach += image >= middle;
    reach = BlockSum(reach, shared, turn);
    (reach >= wanted ? low : high) = middle;
    if (reach == wanted) break;
  }
  return low;
}

// A threshold that at least `wanted` logits reach, and not many more: as many threads' largest do.
// 0 if fewer threads have logits. The merge of the surveys has made the images visible.
__device__ inline uint32_t RankBound(SampleShared& shared, uint32_t wanted, uint32_t high) {
  uint32_t images[Cluster::kSize];
#pragma unroll
  for (int rank = 0; rank < Cluster::kSize; ++rank) {
    images[rank] = Cluster::Shared(shared.largest[threadIdx.x], rank);
  }
  return ThresholdOf(images, wanted, 0, high, shared);
}

// Collects this block's tokens that reach `bound`, and calls also(logits) for all.
template <int kWidth, typename F>
__device__ void CollectTokens(const SampleRow& row, SampleShared& shared, uint32_t bound,
                              const F& also) {
  ForEachPack<kWidth>(row, [&](int64_t first, const auto&, const auto& logits) {
    also(logits);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (OrderedImage(logits[j]) < bound) continue;
      const uint32_t at = atomicAdd(&shared.num_collected, 1u);
      if (at < kSampleThreads) shared.collected[at] = Rank(logits[j], first + j);
    }
  });
}

// Whether each block had room for its tokens that reach `bound`.
template <int kWidth>
__device__ bool Collect(const SampleRow& row, SampleShared& shared, uint32_t bound) {
  CollectTokens<kWidth>(row, shared, bound, [](const auto&) {});
  Cluster::Sync();  // all is collected, and stays to the end
  bool fits = true;
#pragma unroll
  for (int rank = 0; rank < Cluster::kSize; ++rank) {
    fits &= Cluster::Shared(shared.num_collected, rank) <= kSampleThreads;
  }
  return fits;
}

// Whether each block had room for its tokens that reach `bound`, and top-p keeps no others. Returns
// in `goal` the mass that is top-p's share.
template <int kWidth>
__device__ bool CollectProbable(const SampleRow& row, SampleShared& shared, float max,
                                uint32_t bound, uint64_t& goal) {
  Masses masses = Masses::Empty();
  CollectTokens<kWidth>(row, shared, bound, [&](const auto& logits) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) masses.all += row.Mass(row.Scaled(logits[j], max));
  });
  __syncthreads();  // the block has collected
  if (threadIdx.x < shared.num_collected) {
    masses.collected = row.Mass(row.Scaled(RankScore(shared.collected[threadIdx.x]), max));
  }
  masses.lost = shared.num_collected > kSampleThreads;
  masses = ClusterMerge(masses, shared.masses, 0);
  goal = row.MassGoal(masses.all);
  return !masses.lost && masses.collected >= goal;
}

// The smallest kept image or one that as many logits reach, from what all blocks collected.
__device__ inline uint32_t CollectedThreshold(const SampleRow& row, SampleShared& shared,
                                              uint32_t low, uint32_t high) {
  uint32_t images[Cluster::kSize];
#pragma unroll
  for (int rank = 0; rank < Cluster::kSize; ++rank) {
    const bool exists = threadIdx.x < Cluster::Shared(shared.num_collected, rank);
    const uint64_t& there = Cluster::Shared(shared.collected[threadIdx.x], rank);
    images[rank] = exists ? uint32_t(there >> 32) : 0;
  }
  return ThresholdOf(images, row.top_k, low, high, shared);
}

// The smallest kept image, which is at least `low` and below `high`, by passes over the row.
template <int kWidth>
__device__ uint32_t CountedThreshold(const SampleRow& row, SampleShared& shared, uint32_t low,
                                     uint32_t high) {
  for (int turn = 0; high - low > 1; turn ^= 1) {
    const uint32_t step = (high - low + kThresholds) / (kThresholds + 1);
    Counts counts = Counts::Empty();
    ForEachPack<kWidth, 2>(row, [&](int64_t, const auto&, const auto& logits) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const uint32_t image = OrderedImage(logits[j]);
#pragma unroll
        for (int i = 0; i < kThresholds; ++i) counts.reach[i] += image >= low + (i + 1) * step;
      }
    });
    counts = ClusterMerge(counts, shared.counts, turn);
    uint32_t reached = 0;
#pragma unroll
    for (const uint32_t reach : counts.reach) reached += reach >= uint32_t(row.top_k);
    low += reached * step;
    high = std::min(high, low + step);
  }
  return low;
}

}  // namespace eet
