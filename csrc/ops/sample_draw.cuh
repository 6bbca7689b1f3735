// Drawing the token of a row on the GPU, by a cluster of blocks. A token drawn of more than top_p
// keeps is the draw of those kept if it is one of them, so no threshold is looked for: a token is
// drawn, the mass above it tells whether it is kept, and if not, it and what is below are out. What
// may be kept is collected before, if there is room, and only that is drawn of.
#pragma once

#include "ops/sample_threshold.cuh"

namespace eet {

// This thread's tokens of the whole row.
template <int kWidth>
struct TokensInMemory {
  const SampleRow& row;

  // Calls f(first token, penalized logits) for every few tokens.
  template <int kVectors, typename F>
  __device__ void ForEach(const F& f) const {
    ForEachPack<kWidth, kVectors>(
        row, [&](int64_t first, const auto&, const auto& logits) { f(first, logits); });
  }
};

// This thread's token of those collected.
struct CollectedToken {
  bool exists;
  uint64_t rank;

  static __device__ CollectedToken Mine(const SampleShared& shared) {
    return {threadIdx.x < shared.num_collected, shared.collected[threadIdx.x]};
  }

  template <int kVectors, typename F>
  __device__ void ForEach(const F& f) const {
    if (!exists) return;
    const float logits[1] = {RankScore(rank)};
    f(int64_t{RankToken(rank)}, logits);
  }
};

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

// What a token is drawn of: those that reach `least`.
struct Draw {
  const SampleRow& row;
  float max;
  uint32_t least;

  // Takes in the best of these tokens, and their mass, where min-p plays no part.
  template <int kWidth>
  __device__ void Push(int64_t first, const float (&logits)[kWidth], Tally& tally) const {
    bool any = false;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) any |= OrderedImage(logits[j]) >= least;
    if (!any) return;
    uint32_t bits[kWidth];
    RandomBits(row, first, bits);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (OrderedImage(logits[j]) < least) continue;
      const float scaled = row.Scaled(logits[j], max);
      if (row.FiltersByMass()) tally.mass += row.Mass(scaled);
      if (!row.PassesMinP(scaled)) continue;
      tally.best = std::max(tally.best, Rank(scaled + Gumbel(bits[j]), first + j));
    }
  }

  // Takes in the mass of these tokens alone.
  template <int kWidth>
  __device__ void PushMass(const float (&logits)[kWidth], Tally& tally) const {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      if (OrderedImage(logits[j]) < least) continue;
      tally.mass += row.Mass(row.Scaled(logits[j], max));
    }
  }
};

// The token drawn of those that reach `least` and are kept by top-p, whose goal is all these
// tokens' if it is 0, and min-p. The largest logit is always kept, so this ends: after 1 -
// log(top_p) draws on average.
template <typename Tokens>
__device__ int32_t DrawKept(const SampleRow& row, const Tokens& tokens, SampleShared& shared,
                            float max, uint32_t least, uint64_t goal) {
  for (;;) {
    const Draw draw{row, max, least};
    Tally drawn = Tally::Empty(), above = Tally::Empty();
    tokens.template ForEach<2>(
        [&](int64_t first, const auto& logits) { draw.Push(first, logits, drawn); });
    drawn = ClusterMerge(drawn, shared.tallies, 0);
    const int32_t token = RankToken(drawn.best);
    if (!row.FiltersByMass()) return token;
    if (goal == 0) goal = row.MassGoal(drawn.mass);
    least = OrderedImage(row.Penalized(token)) + 1;
    const Draw next{row, max, least};
    tokens.template ForEach<3>([&](int64_t, const auto& logits) { next.PushMass(logits, above); });
    if (ClusterMerge(above, shared.tallies, 1).mass < goal) return token;
  }
}

// A row's token where it is not the one of the largest logit.
template <int kWidth>
__device__ int32_t DrawFiltered(const SampleRow& row, SampleShared& shared, float max) {
  const TokensInMemory<kWidth> all{row};
  const uint32_t high = OrderedImage(max) + 1;
  if (row.FiltersByRank()) {
    const uint32_t bound = RankBound(shared, row.top_k, high);
    if (Collect<kWidth>(row, shared, bound)) {
      const uint32_t least = CollectedThreshold(row, shared, bound, high);
      return DrawKept(row, CollectedToken::Mine(shared), shared, max, least, 0);
    }
    return DrawKept(row, all, shared, max, CountedThreshold<kWidth>(row, shared, bound, high), 0);
  }
  uint64_t goal = 0;
  if (row.FiltersByMass()) {
    constexpr uint32_t kProbable = Cluster::kSize * kSampleThreads / 2;
    const uint32_t bound = RankBound(shared, kProbable, high);
    if (CollectProbable<kWidth>(row, shared, max, bound, goal)) {
      return DrawKept(row, CollectedToken::Mine(shared), shared, max, bound, goal);
    }
  }
  return DrawKept(row, all, shared, max, 0, goal);
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
  ForEachPack<kWidth>(row, [&](int64_t first, const auto& logits, const auto& penalized) {
    survey.Push(first, logits, penalized);
  });
  // Whoever filters by rank reads these after the merge.
  shared.largest[threadIdx.x] = uint32_t(survey.best >> 32);
  if (threadIdx.x == 0) shared.num_collected = 0;
  survey = ClusterMerge(survey, shared.surveys, 0);
  const float max = RankScore(survey.best);
  if (row.IsGreedy(max)) return {RankToken(survey.best), survey.sum};
  if (threadIdx.x == 0) shared.sum = survey.sum;
  const int32_t token = DrawFiltered<kWidth>(row, shared, max);
  return {token, shared.sum};
}

// Whether rows can be read in vectors of four logits.
inline bool InVectors(const SampleArgs& args) {
  return args.vocab % 4 == 0 && IsAligned16(args.logits) && IsAligned16(args.seen);
}

}  // namespace eet
