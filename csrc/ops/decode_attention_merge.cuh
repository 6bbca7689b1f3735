// The second pass of decode attention: what the splits of a row have left becomes the attended
// heads. A warp takes 64 columns of one head, a lane two of them, so that no warp waits for another
// and a split's columns are one access.
#pragma once

#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/round.h"
#include "ops/decode_attention.h"

namespace eet {

constexpr int kMergeWarps = 8;
constexpr int kMergeColumns = 2 * kWarpSize;  // of a warp
constexpr int kMergeAtOnce = 8;               // splits whose sums are loaded together

// By what the splits' sums are multiplied. Lane l has the factors of splits l and l + 32.
class SplitFactors {
 public:
  __device__ SplitFactors(const SoftmaxState* states, int count) {
    static_assert(kMaxSplits == 2 * kWarpSize);
    SoftmaxState splits[2], total;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int split = LaneId() + i * kWarpSize;
      if (split < count) splits[i] = states[split];
    }
    total.max = WarpReduce<Max>(fmaxf(splits[0].max, splits[1].max));
#pragma unroll
    for (int i = 0; i < 2; ++i) factors_[i] = total.Weight(splits[i].max);
    total.sum = WarpReduce<Sum>(splits[0].sum * factors_[0] + splits[1].sum * factors_[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) factors_[i] *= total.Normalizer();
  }

  // The same split in all lanes; 0 of one that the row does not have.
  __device__ float operator[](int split) const {
    return __shfl_sync(kFullMask, factors_[split < kWarpSize ? 0 : 1], split % kWarpSize);
  }

 private:
  float factors_[2];
};

// Two neighbours, stored together.
template <typename T>
struct alignas(2 * sizeof(T)) OutputPair {
  T first, second;
};

// This lane's columns of some splits, of which `left` there are.
__device__ __forceinline__ void LoadSums(const float* sums, int64_t head_dim, int left,
                                         float2 (&batch)[kMergeAtOnce]) {
#pragma unroll
  for (int i = 0; i < kMergeAtOnce; ++i) {
    batch[i] = i < left ? *reinterpret_cast<const float2*>(sums + i * head_dim) : float2{};
  }
}

// The sum over the splits in order. Their sums are loaded ahead: the first with the states, the
// others while those before are added.
__device__ __forceinline__ float2 MergeColumns(const Partial& partials, int count, int64_t head_dim,
                                               int col) {
  const bool exists = col < head_dim;
  const float* sums = partials.sums + (exists ? col : 0);
  float2 batch[kMergeAtOnce], next[kMergeAtOnce], total{};
  LoadSums(sums, head_dim, count, batch);
  const SplitFactors factors(partials.state, count);
  for (int first = 0; first < count; first += kMergeAtOnce) {
    sums += kMergeAtOnce * head_dim;
    LoadSums(sums, head_dim, count - first - kMergeAtOnce, next);
#pragma unroll
    for (int i = 0; i < kMergeAtOnce; ++i) {
      const float factor = factors[first + i];
      total.x += factor * batch[i].x;
      total.y += factor * batch[i].y;
      batch[i] = next[i];
    }
  }
  return total;
}

template <typename T>
__global__ void __launch_bounds__(kMergeWarps* kWarpSize)
    MergeSplitsKernel(DecodeAttentionArgs<T> args) {
  LaunchDependents();
  WaitForDependencies();
  const int index = int(blockIdx.x) * kMergeWarps + int(threadIdx.x) / kWarpSize;
  const int token = index / int(args.heads), head = index % int(args.heads);
  if (token >= args.tokens) return;
  const int count = SplitsOf(args, token).count;
  if (count == 1) return;  // who had it has written the output
  const int col = int(blockIdx.y) * kMergeColumns + 2 * LaneId();
  const float2 sum = MergeColumns(PartialOf(args, token, head, 0), count, args.head_dim, col);
  if (col >= args.head_dim) return;
  T* out = args.out + int64_t{index} * args.head_dim + col;
  *reinterpret_cast<OutputPair<T>*>(out) = {T(sum.x), T(sum.y)};
}

template <typename T>
void LaunchMerge(Stream stream, const DecodeAttentionArgs<T>& args) {
  const auto blocks = [](int64_t work, int64_t at_once) {
    return unsigned(CeilDiv(work, at_once));
  };
  const dim3 grid(blocks(args.tokens * args.heads, kMergeWarps),
                  blocks(args.head_dim, kMergeColumns));
  LaunchWithPdl(MergeSplitsKernel<T>, {.grid = grid, .block = dim3(kMergeWarps * kWarpSize)},
                stream, args);
}

}  // namespace eet
