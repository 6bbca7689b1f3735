// Decode attention in float32, without tensor cores. A warp takes four keys at a time, its lanes
// sharing their columns.
#pragma once

#include "ops/decode_attention_split.cuh"

namespace eet {

constexpr int kDecodeFmaWarps = 4, kKeysAtOnce = 4;

template <int kDim>
struct DecodeFmaShared {
  float queries[kBlockHeads][kDim];
  WarpResults<kDecodeFmaWarps, kDim> results;
};

// A lane's columns of a few rows: lane, lane + 32, ...
template <int kDim>
using LaneRows = float[kKeysAtOnce][kDim / kWarpSize];

// Rows of keys `key` and after; zeros for what no query sees and past head_dim.
template <int kDim>
__device__ void LoadRows(const DecodeAttentionArgs<float>& args, const SplitBlock& block, int key,
                         LaneRows<kDim>& k, LaneRows<kDim>& v) {
#pragma unroll
  for (int i = 0; i < kKeysAtOnce; ++i) {
    const bool visible = block.keys.Contains(key + i);
    const int page = visible ? PageOf(args, block.row, key + i) : 0;
    const int64_t offset = KeyOffset(args, page, block.kv_head, key + i);
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
__device__ void LoadQueries(const DecodeAttentionArgs<float>& args, const SplitBlock& block,
                            float (&queries)[kBlockHeads][kDim]) {
  const float* q = args.q + (block.token * args.heads + block.first_head) * args.head_dim;
  for (int i = threadIdx.x; i < block.heads * kDim; i += kDecodeFmaWarps * kWarpSize) {
    const int head = i / kDim, col = i % kDim;
    queries[head][col] = col < args.head_dim ? q[head * args.head_dim + col] : 0.0f;
  }
}

// Takes a few keys into one head's state and sums.
template <int kDim>
__device__ void AddKeys(const DecodeAttentionArgs<float>& args, const SplitBlock& block, int key,
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
    scores[i] += AlibiTerm(slope, key + i, block.position);
    if (!block.keys.Contains(key + i)) scores[i] = -INFINITY;
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

template <int kDim>
__global__ void __launch_bounds__(kDecodeFmaWarps* kWarpSize)
    DecodeFmaKernel(DecodeAttentionArgs<float> args) {
  constexpr int kCols = kDim / kWarpSize;
  __shared__ __align__(16) char memory[sizeof(DecodeFmaShared<kDim>)];
  auto& shared = *reinterpret_cast<DecodeFmaShared<kDim>*>(memory);
  LetNextKernelStart();
  WaitForKernelsBefore();
  const SplitBlock block = ThisBlock(args);
  if (block.keys.empty()) return;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  LoadQueries(args, block, shared.queries);
  __syncthreads();
  float sums[kBlockHeads][kCols] = {};
  SoftmaxState states[kBlockHeads];
  for (int key = block.keys.begin + warp * kKeysAtOnce; key < block.keys.end;
       key += kDecodeFmaWarps * kKeysAtOnce) {
    LaneRows<kDim> k, v;
    LoadRows<kDim>(args, block, key, k, v);
#pragma unroll
    for (int head = 0; head < kBlockHeads; ++head) {
      if (head >= block.heads) break;
      const float slope = args.alibi_slopes ? args.alibi_slopes[block.first_head + head] : 0.0f;
      AddKeys<kDim>(args, block, key, slope, shared.queries[head], k, v, states[head], sums[head]);
    }
  }
#pragma unroll
  for (int head = 0; head < kBlockHeads; ++head) {
    if (lane == 0) shared.results.states[warp][head] = states[head];
#pragma unroll
    for (int n = 0; n < kCols; ++n) {
      shared.results.sums[warp][head][n * kWarpSize + lane] = sums[head][n];
    }
  }
  __syncthreads();
  WritePartials(args, block, shared.results);
}

}  // namespace eet
