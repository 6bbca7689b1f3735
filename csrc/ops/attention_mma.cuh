// Attention on tensor cores, for 2-byte types. One block per 64 queries of a head, one warp per 16;
// keys and values pass through shared memory 64 at a time, scores stay in registers.
#pragma once

#include "ops/attention_mma_tile.cuh"

namespace eet {

template <typename T, int kDim>
__device__ void Products(const QueryFragments<T, kDim>& queries, const SharedTile<T, kDim>& keys,
                         ScoreFragment& scores) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = 0.0f;
  }
#pragma unroll(kDim <= 128 ? kDim / 16 : 2)  // kept queries want constant indices
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t a[4];
    queries.Get(k, a);
#pragma unroll
    for (int n = 0; n < kTileKeys / 16; ++n) {
      uint32_t b[4];
      LoadMatrices(b, keys.Chunk(16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
      MmaM16N8K16(scores[2 * n], a, even, std::type_identity<T>{});
      MmaM16N8K16(scores[2 * n + 1], a, odd, std::type_identity<T>{});
    }
  }
}

// Calls change(score, key, i) for all scores of a lane, i telling which of its two queries it is.
template <typename F>
__device__ void ForEachScore(ScoreFragment& scores, int tile_key, const F& change) {
  const int first = tile_key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) change(scores[n][i], first + 8 * n + i % 2, i / 2);
  }
}

// From products to scores; minus infinity where the query does not see the key.
template <typename T>
__device__ void ToScores(const AttentionArgs<T>& args, float slope, const WarpQueries& queries,
                         int tile_key, ScoreFragment& scores) {
  if (args.soft_cap == 0.0f) {
    const float factor = args.scale * kLog2E;
    ForEachScore(scores, tile_key, [&](float& score, int, int) { score *= factor; });
  } else {
    ForEachScore(scores, tile_key,
                 [&](float& score, int, int) { score = Score(score, args.scale, args.soft_cap); });
  }
  if (args.alibi_slopes) {
    ForEachScore(scores, tile_key, [&](float& score, int key, int i) {
      score += AlibiTerm(slope, key, queries.position[i]);
    });
  }
  if (tile_key < queries.all.begin || tile_key + kTileKeys > queries.all.end) {
    ForEachScore(scores, tile_key, [&](float& score, int key, int i) {
      if (!queries.keys[i].Contains(key)) score = -INFINITY;
    });
  }
}

// From scores to weights, and all before in proportion.
template <int kDim>
__device__ void ToWeights(ScoreFragment& scores, WarpOutput<kDim>& output) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    SoftmaxState& softmax = output.softmax[i];
    float largest = -INFINITY;
#pragma unroll
    for (int n = 0; n < kTileKeys / 8; ++n) {
      largest = fmaxf(largest, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
    }
    largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 2));
    const float factor = softmax.Raise(largest);
#pragma unroll
    for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
      for (int j = 2 * i; j < 2 * i + 2; ++j) {
        scores[n][j] = softmax.Weight(scores[n][j]);
        softmax.sum += scores[n][j];
      }
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      output.values[n][2 * i] *= factor;
      output.values[n][2 * i + 1] *= factor;
    }
  }
}

// The weights of two groups of eight keys lie in registers as an operand wants them.
template <typename T, int kDim>
__device__ void AddValues(const ScoreFragment& weights, const SharedTile<T, kDim>& values,
                          WarpOutput<kDim>& output) {
  constexpr std::type_identity<T> kType;
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int k = 0; k < kTileKeys / 16; ++k) {
    const uint32_t a[4] = {PackPair(weights[2 * k][0], weights[2 * k][1], kType),
                           PackPair(weights[2 * k][2], weights[2 * k][3], kType),
                           PackPair(weights[2 * k + 1][0], weights[2 * k + 1][1], kType),
                           PackPair(weights[2 * k + 1][2], weights[2 * k + 1][3], kType)};
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t b[4];
      LoadMatricesTransposed(b, values.Chunk(16 * k + lane % 16, 2 * n + lane / 16));
      const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
      MmaM16N8K16(output.values[2 * n], a, even, kType);
      MmaM16N8K16(output.values[2 * n + 1], a, odd, kType);
    }
  }
}

// Normalizes, and writes through the warp's own part of the queries' tile, 16 bytes at a time.
template <typename T, int kDim>
__device__ void WriteOutput(const AttentionArgs<T>& args, const QueryBlock& block,
                            const SharedTile<T, kDim>& tile, WarpOutput<kDim>& output) {
  constexpr int kChunks = SharedTile<T, kDim>::kChunks;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  __syncwarp();  // the warp has read its queries
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    SoftmaxState& softmax = output.softmax[i];
    softmax.sum += __shfl_xor_sync(kFullMask, softmax.sum, 1);
    softmax.sum += __shfl_xor_sync(kFullMask, softmax.sum, 2);
    const float normalizer = softmax.Normalizer();
#pragma unroll
    for (int n = 0; n < kChunks; ++n) {
      const float* values = &output.values[n][2 * i];
      T* chunk = tile.Chunk(warp * kWarpQueries + lane / 4 + 8 * i, n);
      reinterpret_cast<uint32_t*>(chunk)[lane % 4] =
          PackPair(values[0] * normalizer, values[1] * normalizer, std::type_identity<T>{});
    }
  }
  __syncwarp();
  for (int i = lane; i < kWarpQueries * kChunks; i += kWarpSize) {
    const int query = warp * kWarpQueries + i / kChunks, chunk = i % kChunks;
    if (query >= block.count || chunk * kChunk >= args.head_dim) continue;
    T* out = args.out + ((block.token + query) * args.heads + block.head) * args.head_dim;
    StoreVector(out + chunk * kChunk, LoadVector(tile.Chunk(query, chunk)));
  }
}

template <int kDim>
constexpr int kMmaSharedBytes = (kMmaQueries + 2 * kTileKeys) * kDim * 2;

template <typename T, int kDim>
__global__ void __launch_bounds__(kMmaThreads) AttentionMmaKernel(AttentionArgs<T> args) {
  extern __shared__ __align__(128) char memory[];
  const SharedTile<T, kDim> query_tile{reinterpret_cast<T*>(memory)};
  const SharedTile<T, kDim> key_tile{query_tile.data + kMmaQueries * kDim};
  const SharedTile<T, kDim> value_tile{key_tile.data + kTileKeys * kDim};
  __shared__ Query queries[kMmaQueries];
  __shared__ int64_t offsets[2][kTileKeys];  // of this tile's keys and the next's, in turn
  const int thread = threadIdx.x;
  const QueryBlock block = ThisBlock<kMmaQueries>(args);
  const float slope = args.alibi_slopes ? args.alibi_slopes[block.head] : 0.0f;

  ReadQueries(args, block, queries);
  if (thread < kMmaQueries) {
    const int64_t offset = ((block.token + thread) * args.heads + block.head) * args.head_dim;
    offsets[0][thread] = thread < block.count ? offset : -1;
  }
  __syncthreads();
  StartRows(query_tile, args.q, args.head_dim, offsets[0]);
  WaitCopies<0>();
  __syncthreads();
  const QueryFragments<T, kDim> fragments(query_tile);
  WarpOutput<kDim> output;

  for (int first = 0; first < kMmaQueries;) {
    const Segment segment = FindSegment(queries, first);
    first = segment.last;
    if (segment.keys.empty()) continue;
    const WarpQueries seen(queries, segment);
    int tile_key = segment.keys.begin / kTileKeys * kTileKeys;
    if (thread < kTileKeys) {
      offsets[0][thread] = SegmentKeyOffset(args, segment, block.kv_head, tile_key + thread);
    }
    __syncthreads();
    StartRows(key_tile, args.k, args.head_dim, offsets[0]);
    for (int stage = 0; tile_key < segment.keys.end; tile_key += kTileKeys, stage ^= 1) {
      const int next_key = tile_key + kTileKeys;
      const bool active = tile_key < seen.any.end && next_key > seen.any.begin;
      WaitCopies<0>();
      __syncthreads();  // the keys are here; the last values have been read
      StartRows(value_tile, args.v, args.head_dim, offsets[stage]);
      if (thread < kTileKeys) {
        offsets[stage ^ 1][thread] =
            SegmentKeyOffset(args, segment, block.kv_head, next_key + thread);
      }
      ScoreFragment scores;
      if (active) Products(fragments, key_tile, scores);
      WaitCopies<0>();
      __syncthreads();  // the values and the next offsets are here; the keys have been read
      if (next_key < segment.keys.end) {
        StartRows(key_tile, args.k, args.head_dim, offsets[stage ^ 1]);
      }
      if (!active) continue;
      ToScores(args, slope, seen, tile_key, scores);
      ToWeights(scores, output);
      AddValues(scores, value_tile, output);
    }
  }
  WriteOutput(args, block, query_tile, output);
}

}  // namespace eet
