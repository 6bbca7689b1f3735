// Decode attention in float32, without tensor cores. A warp takes four keys at a time, its lanes
// sharing their columns.
#pragma once

#include "ops/decode_attention_split.cuh"

namespace eet {

constexpr int kDecodeFmaWarps = 4, kKeysAtOnce = 4;

// What the warps of a block have found.
template <int kDim>
struct WarpResults {
  static constexpr int kStride = kDim + 4;  // spreads the heads over the banks

  SoftmaxState states[kDecodeFmaWarps][kItemHeads];
  float sums[kDecodeFmaWarps][kItemHeads][kStride];
};

template <int kDim>
struct DecodeFmaShared {
  float queries[kItemHeads][kDim];
  WarpResults<kDim> results;
};

// A block for each item that a token may have.
inline dim3 FmaGrid(const DecodeAttentionArgs<float>& args) {
  return dim3(unsigned(args.tokens), unsigned(ItemSizes(args).items),
              unsigned(MaxSplits(args.max_pages * args.page_size)));
}

__device__ inline SplitItem ItemOfBlock(const DecodeAttentionArgs<float>& args,
                                        const ItemSizes& sizes) {
  const int token = int(blockIdx.x), index = int(blockIdx.z * gridDim.y + blockIdx.y);
  return ItemOf(args, sizes, token, args.rows[token], args.positions[token], index);
}

// A lane's columns of a few rows: lane, lane + 32, ...
template <int kDim>
using LaneRows = float[kKeysAtOnce][kDim / kWarpSize];

// Rows of keys `key` and after; zeros for what no query sees and past head_dim.
template <int kDim>
__device__ void LoadRows(const DecodeAttentionArgs<float>& args, const SplitItem& item, int key,
                         LaneRows<kDim>& k, LaneRows<kDim>& v) {
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    const bool visible = item.keys.Contains(key + i);
    const int page = visible ? PageOf(args, item.row, key + i) : 0;
    const int64_t offset = KeyOffset(args, page, item.kv_head, key + i);
#pragma unroll
    for (int n = 0; n < kDim / kWarpSize; ++n) {
      const int col = n * kWarpSize + threadIdx.x % kWarpSize;
      const bool valid = visible && col < args.head_dim;
      k[i][n] = valid ? args.k[offset + col] : 0.0f;
      v[i][n] = valid ? args.v[offset + col] : 0.0f;
    }
  }
}

template <int kDim>
__device__ void LoadQueries(const DecodeAttentionArgs<float>& args, const SplitItem& item,
                            float (&queries)[kItemHeads][kDim]) {
  const float* q = args.q + (item.token * args.heads + item.first_head) * args.head_dim;
  for (int i = threadIdx.x; i < item.heads * kDim; i += kDecodeFmaWarps * kWarpSize) {
    const int head = i / kDim, col = i % kDim;
    queries[head][col] = col < args.head_dim ? q[head * args.head_dim + col] : 0.0f;
  }
}

// Takes a few keys into one head's state and sums.
template <int kDim>
__device__ void AddKeys(const DecodeAttentionArgs<float>& args, const SplitItem& item, int key,
                        float slope, const float (&query)[kDim], const LaneRows<kDim>& k,
                        const LaneRows<kDim>& v, SoftmaxState& state,
                        float (&sums)[kDim / kWarpSize]) {
  constexpr int kCols = kDim / kWarpSize;
  float scores[kKeysAtOnce], largest = -INFINITY;
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    float product = 0.0f;
#pragma unroll
    for (int n = 0; n < kCols; ++n) {
      product += query[n * kWarpSize + threadIdx.x % kWarpSize] * k[i][n];
    }
    scores[i] = Score(WarpReduce<Sum>(product), args.scale, args.soft_cap);
    scores[i] += AlibiTerm(slope, key + i, item.position);
    if (!item.keys.Contains(key + i)) scores[i] = -INFINITY;
    largest = fmaxf(largest, scores[i]);
  }
  const float factor = state.Raise(largest);
#pragma unroll
  for (int n = 0; n < kCols; ++n) sums[n] *= factor;
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    const float weight = state.Weight(scores[i]);
    state.sum += weight;
#pragma unroll
    for (int n = 0; n < kCols; ++n) sums[n] += weight * v[i][n];
  }
}

// Merges the warps' results in order. By all threads of the block, after a barrier.
template <int kDim>
__device__ void WriteResults(const DecodeAttentionArgs<float>& args, const SplitItem& item,
                             const WarpResults<kDim>& results) {
  for (int i = threadIdx.x; i < item.heads * kDim; i += kDecodeFmaWarps * kWarpSize) {
    const int head = i / kDim, col = i % kDim;
    if (col >= args.head_dim) continue;
    SoftmaxState state;
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kDecodeFmaWarps; ++warp) {
      const auto [before, factor] = state.Merge(results.states[warp][head]);
      sum = sum * before + results.sums[warp][head][col] * factor;
    }
    const int64_t of_token = item.first_head + head;
    if (item.splits == 1) {
      args.out[(item.token * args.heads + of_token) * args.head_dim + col] =
          sum * state.Normalizer();
      continue;
    }
    const Partial partial = PartialOf(args, item.token, of_token, item.split);
    partial.sums[col] = sum;
    if (col == 0) *partial.state = state;
  }
}

template <int kDim>
__global__ void __launch_bounds__(kDecodeFmaWarps* kWarpSize)
    DecodeFmaKernel(DecodeAttentionArgs<float> args, ItemSizes sizes) {
  constexpr int kCols = kDim / kWarpSize;
  __shared__ __align__(16) char memory[sizeof(DecodeFmaShared<kDim>)];
  auto& shared = *reinterpret_cast<DecodeFmaShared<kDim>*>(memory);
  LaunchDependents();
  WaitForDependencies();
  const SplitItem item = ItemOfBlock(args, sizes);
  if (item.heads == 0) return;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  LoadQueries(args, item, shared.queries);
  __syncthreads();
  float sums[kItemHeads][kCols] = {};
  SoftmaxState states[kItemHeads];
  for (int key = item.keys.begin + warp * kKeysAtOnce; key < item.keys.end;
       key += kDecodeFmaWarps * kKeysAtOnce) {
    LaneRows<kDim> k, v;
    LoadRows<kDim>(args, item, key, k, v);
#pragma unroll
    for (int head = 0; head < kItemHeads; ++head) {
      if (head >= item.heads) break;
      const float slope = args.alibi_slopes ? args.alibi_slopes[item.first_head + head] : 0.0f;
      AddKeys<kDim>(args, item, key, slope, shared.queries[head], k, v, states[head], sums[head]);
    }
  }
#pragma unroll
  for (int head = 0; head < kItemHeads; ++head) {
    if (lane == 0) shared.results.states[warp][head] = states[head];
#pragma unroll
    for (int n = 0; n < kCols; ++n) {
      shared.results.sums[warp][head][n * kWarpSize + lane] = sums[head][n];
    }
  }
  __syncthreads();
  WriteResults(args, item, shared.results);
}

}  // namespace eet
