// What the decode attention kernels share on the GPU: which part of the work a block has, and how
// its warps' results become the split's.
#pragma once

#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "ops/decode_attention.h"

namespace eet {

constexpr int kBlockHeads = 8;  // query heads of a block at most

// Query heads of one token that share a KV head, over one split of the keys; none beyond the last.
struct SplitBlock {
  int64_t token, row, kv_head, first_head;
  int heads, split, position;
  KeyRange keys;
};

// Blocks for the query heads of a KV head.
template <typename T>
__host__ __device__ int64_t HeadBlocks(const DecodeAttentionArgs<T>& args) {
  return (args.heads / args.kv_heads + kBlockHeads - 1) / kBlockHeads;
}

template <typename T>
dim3 SplitGrid(const DecodeAttentionArgs<T>& args) {
  return dim3(unsigned(args.tokens), unsigned(args.kv_heads * HeadBlocks(args)),
              unsigned(MaxSplits(args.max_pages * args.page_size)));
}

template <typename T>
__device__ SplitBlock ThisBlock(const DecodeAttentionArgs<T>& args) {
  const int64_t group = args.heads / args.kv_heads;
  const int64_t kv_head = blockIdx.y / HeadBlocks(args);
  const int64_t head = blockIdx.y % HeadBlocks(args) * kBlockHeads;
  const KeySplits splits = SplitsOf(args, blockIdx.x);
  const int split = blockIdx.z;
  return {.token = blockIdx.x,
          .row = args.rows[blockIdx.x],
          .kv_head = kv_head,
          .first_head = kv_head * group + head,
          .heads = int(min(int64_t{kBlockHeads}, group - head)),
          .split = split,
          .position = args.positions[blockIdx.x],
          .keys = split < splits.count ? splits[split] : KeyRange{}};
}

// What the warps of a block have found, in shared memory.
template <int kWarps, int kDim>
struct WarpResults {
  static constexpr int kStride = kDim + 4;  // spreads the heads over the banks

  SoftmaxState states[kWarps][kBlockHeads];
  float sums[kWarps][kBlockHeads][kStride];
};

// Merges the warps' results in order. By all threads of the block, after a barrier.
template <int kWarps, int kDim, typename T>
__device__ void WritePartials(const DecodeAttentionArgs<T>& args, const SplitBlock& block,
                              const WarpResults<kWarps, kDim>& results) {
  for (int i = threadIdx.x; i < block.heads * kDim; i += kWarps * kWarpSize) {
    const int head = i / kDim, col = i % kDim;
    if (col >= args.head_dim) continue;
    SoftmaxState state;
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const auto [before, factor] = state.Merge(results.states[warp][head]);
      sum = sum * before + results.sums[warp][head][col] * factor;
    }
    const Partial partial = PartialOf(args, block.token, block.first_head + head, block.split);
    partial.sums[col] = sum;
    if (col == 0) *partial.state = state;
  }
}

}  // namespace eet
