// The second pass of decode attention: what the parts of a row have left becomes the attended
// heads. A warp takes 64 columns of one head, a lane two of them, so that no warp waits for another
// and a part's columns are one access.
#pragma once

#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "ops/decode_attention_split.cuh"

namespace eet {

constexpr int kMergeWarps = 8;
constexpr int kMergeColumns = 2 * kWarpSize;  // of a warp
constexpr int kMergeAtOnce = 8;               // parts whose sums are loaded together

// By what sums are multiplied: those of splits for their run's, those of runs for the row's. A part
// is kSplits of a run's splits: one, or all. Lane l has the factors of run l.
template <int kSplits>
class PartFactors {
 public:
  static constexpr int kParts = kRunSplits / kSplits;  // of a run

  __device__ PartFactors(const SoftmaxState* states, int count) {
    static_assert(kMaxSplits / kRunSplits <= kWarpSize);
    SoftmaxState run, total;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int part = LaneId() * kParts + i;
      of_parts_[i] = run.Merge(part < count ? states[part] : SoftmaxState{});
    }
    total.max = WarpReduce<Max>(run.max);
    of_run_ = total.Weight(run.max);
    total.sum = WarpReduce<Sum>(run.sum * of_run_);
    of_run_ *= total.Normalizer();
  }

  // Adds the sums of run `run`'s parts to the row's.
  __device__ void Add(int run, const float2* parts, float2& total) const {
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

// Two neighbours, stored together.
template <typename T>
struct alignas(2 * sizeof(T)) OutputPair {
  T first, second;
};

// This lane's columns of some parts, of which `left` there are.
__device__ __forceinline__ void LoadSums(const float* sums, int64_t head_dim, int left,
                                         float2 (&batch)[kMergeAtOnce]) {
#pragma unroll
  for (int i = 0; i < kMergeAtOnce; ++i) {
    batch[i] = i < left ? *reinterpret_cast<const float2*>(sums + i * head_dim) : float2{};
  }
}

// The sum over the parts in order. Their sums are loaded ahead: the first with the states, the
// others while those before are added.
template <int kSplits>
__device__ __forceinline__ float2 MergeColumns(const Partial& partials, int count, int64_t head_dim,
                                               int col) {
  const bool exists = col < head_dim;
  const float* sums = partials.sums + (exists ? col : 0);
  float2 batch[kMergeAtOnce], next[kMergeAtOnce], total{};
  LoadSums(sums, head_dim, count, batch);
  const PartFactors<kSplits> factors(partials.state, count);
  for (int first = 0; first < count; first += kMergeAtOnce) {
    sums += kMergeAtOnce * head_dim;
    LoadSums(sums, head_dim, count - first - kMergeAtOnce, next);
    constexpr int kParts = PartFactors<kSplits>::kParts;
#pragma unroll
    for (int i = 0; i < kMergeAtOnce; i += kParts) {
      factors.Add((first + i) / kParts, batch + i, total);
    }
#pragma unroll
    for (int i = 0; i < kMergeAtOnce; ++i) batch[i] = next[i];
  }
  return total;
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
  const float2 sum =
      MergeColumns<kSplits>(PartialOf(args, token, head, 0), count, args.head_dim, col);
  if (col >= args.head_dim) return;
  T* out = args.out + int64_t{index} * args.head_dim + col;
  *reinterpret_cast<OutputPair<T>*>(out) = {T(sum.x), T(sum.y)};
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
