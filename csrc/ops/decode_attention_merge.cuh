// Merges what the parts of a row have left into the attended heads. A warp takes 64 columns of a
// head, a lane two of them, so that no warp waits for another and a part's columns are one access.
//
// Where a row has few parts, the warp that brings the last one merges. Many are merged by a kernel
// of their own, with a warp for each head.
#pragma once

#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "ops/decode_attention_split.cuh"

namespace eet {

constexpr int kMergeWarps = 8;
constexpr int kMergeColumns = 2 * kWarpSize;  // of a warp
constexpr int kFewParts = 16;

// Whether no row can have many parts: then there is no kernel for them.
template <int kSplits, typename T>
EET_HOST_DEVICE bool HasFewParts(const DecodeAttentionArgs<T>& args) {
  return (MaxSplits(args.max_pages * args.page_size) + kSplits - 1) / kSplits <= kFewParts;
}

// This lane's columns of some parts, of which `left` there are. Other blocks have written them,
// maybe just now.
template <int kCount>
__device__ __forceinline__ void LoadSums(const float* sums, int64_t head_dim, int left,
                                         float2 (&batch)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    batch[i] = {};
    if (i < left) batch[i] = __ldcg(reinterpret_cast<const float2*>(sums + i * head_dim));
  }
}

// What a warp reads of a head's parts before it has to wait: the states, lane l those of run l, and
// its columns of the first parts. A part is kSplits of a run's splits: one, or all.
template <int kSplits>
struct HeadParts {
  static constexpr int kParts = kRunSplits / kSplits;    // of a run
  static constexpr int kAtOnce = kSplits == 1 ? 16 : 8;  // parts whose sums are loaded together
  static constexpr int kHeads = 32 / kAtOnce;            // that a warp merges together

  const float* sums;  // from this lane's first column on
  SoftmaxState states[kParts];
  float2 first[kAtOnce];

  HeadParts() = default;

  __device__ __forceinline__ HeadParts(const Partial& partials, int count, int64_t head_dim,
                                       int col) {
    static_assert(kMaxSplits / kRunSplits <= kWarpSize);
    sums = partials.sums + (col < head_dim ? col : 0);
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int part = LaneId() * kParts + i;
      if (part >= count) continue;
      const float2 state = __ldcg(reinterpret_cast<const float2*>(partials.state + part));
      states[i] = {state.x, state.y};
    }
    LoadSums(sums, head_dim, count, first);
  }
};

// By what sums are multiplied: those of splits for their run's, those of runs for the row's. Lane l
// has the factors of run l.
template <int kSplits>
class PartFactors {
 public:
  static constexpr int kParts = HeadParts<kSplits>::kParts;

  __device__ __forceinline__ explicit PartFactors(const SoftmaxState (&states)[kParts]) {
    SoftmaxState run, total;
#pragma unroll
    for (int i = 0; i < kParts; ++i) of_parts_[i] = run.Merge(states[i]);
    total.max = WarpReduce<Max>(run.max);
    of_run_ = total.Weight(run.max);
    total.sum = WarpReduce<Sum>(run.sum * of_run_);
    of_run_ *= total.Normalizer();
  }

  // Adds the sums of run `run`'s parts to the row's.
  __device__ __forceinline__ void Add(int run, const float2* parts, float2& total) const {
    float2 sum{};
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float before = Of(run, of_parts_[i].before), factor = Of(run, of_parts_[i].pushed);
      sum.x = MergeSums(sum.x, before, parts[i].x, factor);
      sum.y = MergeSums(sum.y, before, parts[i].y, factor);
    }
    const float factor = Of(run, of_run_);
    total.x = fmaf(factor, sum.x, total.x);
    total.y = fmaf(factor, sum.y, total.y);
  }

 private:
  __device__ static float Of(int run, float value) { return __shfl_sync(kFullMask, value, run); }

  SoftmaxState::Factors of_parts_[kParts];
  float of_run_;  // 0 of one that the row does not have
};

// The sum over the parts in order. Sums after the first are loaded while those before are added.
template <int kSplits>
__device__ __forceinline__ float2 MergeColumns(const HeadParts<kSplits>& parts, int count,
                                               int64_t head_dim) {
  const PartFactors<kSplits> factors(parts.states);
  constexpr int kParts = HeadParts<kSplits>::kParts, kAtOnce = HeadParts<kSplits>::kAtOnce;
  const float* sums = parts.sums;
  float2 batch[kAtOnce], next[kAtOnce], total{};
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) batch[i] = parts.first[i];
#pragma unroll 1
  for (int first = 0; first < count; first += kAtOnce) {
    sums += kAtOnce * head_dim;
    LoadSums(sums, head_dim, count - first - kAtOnce, next);
#pragma unroll
    for (int i = 0; i < kAtOnce; i += kParts) {
      factors.Add((first + i) / kParts, batch + i, total);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) batch[i] = next[i];
  }
  return total;
}

// Two neighbours, stored together.
template <typename T>
struct alignas(2 * sizeof(T)) OutputPair {
  T first, second;
};

// Of a head from column `col` on, if it has so many.
template <typename T>
__device__ __forceinline__ void StoreMerged(const DecodeAttentionArgs<T>& args, int64_t token,
                                            int64_t head, int col, float2 merged) {
  if (col >= args.head_dim) return;
  T* out = args.out + (token * args.heads + head) * args.head_dim + col;
  *reinterpret_cast<OutputPair<T>*>(out) = {T(merged.x), T(merged.y)};
}

// Merges the `count` parts of some heads, by one warp; as many of them together as it has registers
// for: not those of its caller.
template <int kSplits, typename T>
__device__ __noinline__ void MergeHeads(const DecodeAttentionArgs<T>& args, int64_t token,
                                        int first_head, int heads, int count) {
  using Parts = HeadParts<kSplits>;
  const auto load = [&](int head, int col) {
    return Parts(PartialOf(args, token, first_head + min(head, heads - 1), 0), count, args.head_dim,
                 col);
  };
#pragma unroll 1
  for (int first_col = 0; first_col < args.head_dim; first_col += kMergeColumns) {
    const int col = first_col + 2 * LaneId();
#pragma unroll 1
    for (int head = 0; head < heads; head += Parts::kHeads) {
      Parts parts[Parts::kHeads];
#pragma unroll
      for (int i = 0; i < Parts::kHeads; ++i) parts[i] = load(head + i, col);
#pragma unroll
      for (int i = 0; i < Parts::kHeads; ++i) {
        const float2 merged = MergeColumns<kSplits>(parts[i], count, args.head_dim);
        if (head + i < heads) StoreMerged(args, token, first_head + head + i, col, merged);
      }
    }
  }
}

template <typename T, int kSplits>
__global__ void __launch_bounds__(kMergeWarps* kWarpSize)
    MergeSplitsKernel(DecodeAttentionArgs<T> args) {
  LetNextKernelStart();
  WaitForKernelsBefore();
  const int index = int(blockIdx.x) * kMergeWarps + int(threadIdx.x) / kWarpSize;
  const int token = index / int(args.heads), head = index % int(args.heads);
  if (token >= args.tokens) return;
  const int count = PartsOf<kSplits>(SplitsOf(args, token));
  if (count == 1) return;  // who had it has written the output
  const int col = int(blockIdx.y) * kMergeColumns + 2 * LaneId();
  const HeadParts<kSplits> parts(PartialOf(args, token, head, 0), count, args.head_dim, col);
  StoreMerged(args, token, head, col, MergeColumns<kSplits>(parts, count, args.head_dim));
}

template <int kSplits, typename T>
void LaunchMerge(Stream stream, const DecodeAttentionArgs<T>& args) {
  const auto blocks = [](int64_t work, int64_t at_once) {
    return unsigned((work + at_once - 1) / at_once);
  };
  const dim3 grid(blocks(args.tokens * args.heads, kMergeWarps),
                  blocks(args.head_dim, kMergeColumns));
  LaunchEarly(MergeSplitsKernel<T, kSplits>, {.grid = grid, .block = dim3(kMergeWarps * kWarpSize)},
              stream, args);
}

}  // namespace eet
