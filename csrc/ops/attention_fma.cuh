// Attention in float32, without tensor cores. One block per 32 queries of a head; eight lanes share
// two of the queries, each with its own keys of a product and its own columns of the output.
#pragma once

#include "core/vector.cuh"
#include "ops/attention_tile.cuh"

namespace eet {

constexpr int kFmaThreads = 128, kFmaQueries = 32, kFmaKeys = 32;
constexpr int kLanesPerQuery = 8, kKeysPerLane = kFmaKeys / kLanesPerQuery;
constexpr int kQueryStep = kFmaThreads / kLanesPerQuery;  // between a thread's two queries
static_assert(kTileKeys % kFmaKeys == 0 && kFmaQueries == 2 * kQueryStep);

template <int kDim>
struct FmaShared {
  static constexpr int kStride = kDim + 4;  // eight rows' vectors lie in different banks

  float queries[kFmaQueries][kStride];
  float rows[kFmaKeys][kStride];  // keys, then values
  float weights[kFmaQueries][kFmaKeys + 1];
};

// What a thread has accumulated for its two queries.
template <int kDim>
struct ThreadOutput {
  float values[2][kDim / kLanesPerQuery] = {};
  SoftmaxState softmax[2];  // sums over this thread's keys only
};

// Copies rows given by their offsets, -1 for zeros; also zeros the columns past head_dim.
template <int kRows, int kStride>
__device__ void CopyRows(float (&tile)[kRows][kStride], const float* source, int64_t head_dim,
                         const int64_t (&offsets)[kRows]) {
  constexpr int kVectors = (kStride - 4) / 4;
  for (int i = threadIdx.x; i < kRows * kVectors; i += kFmaThreads) {
    const int row = i / kVectors, col = i % kVectors * 4;
    const bool valid = offsets[row] >= 0 && col < head_dim;
    StoreVector(&tile[row][col], valid ? LoadVector(source + offsets[row] + col) : Vector<float>{});
  }
}

// Scores of query `query` and of the one kQueryStep after it with every eighth key.
template <int kDim>
__device__ void Products(const FmaShared<kDim>& shared, int query, int lane,
                         float (&products)[2][kKeysPerLane]) {
  for (int col = 0; col < kDim; col += 4) {
    Vector<float> q[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) q[i] = LoadVector(&shared.queries[query + i * kQueryStep][col]);
#pragma unroll
    for (int j = 0; j < kKeysPerLane; ++j) {
      const Vector<float> k = LoadVector(&shared.rows[lane + j * kLanesPerQuery][col]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) products[i][j] += q[i].values[e] * k.values[e];
      }
    }
  }
}

// From the products of one query to weights, in shared memory; the output in proportion.
template <int kDim>
__device__ void ToWeights(const AttentionArgs<float>& args, float slope, const Query& query,
                          KeyRange keys, int first_key, float (&scores)[kKeysPerLane],
                          SoftmaxState& softmax, float (&values)[kDim / kLanesPerQuery]) {
  float largest = -INFINITY;
#pragma unroll
  for (int j = 0; j < kKeysPerLane; ++j) {
    const int key = first_key + j * kLanesPerQuery;
    scores[j] = Score(scores[j], args.scale, args.soft_cap);
    if (args.alibi_slopes) scores[j] += AlibiTerm(slope, key, query.position);
    if (!keys.Contains(key)) scores[j] = -INFINITY;
    largest = fmaxf(largest, scores[j]);
  }
#pragma unroll
  for (int offset = kLanesPerQuery / 2; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, offset));
  }
  const float factor = softmax.Raise(largest);
#pragma unroll
  for (int j = 0; j < kKeysPerLane; ++j) {
    scores[j] = softmax.Weight(scores[j]);
    softmax.sum += scores[j];
  }
#pragma unroll
  for (int e = 0; e < kDim / kLanesPerQuery; ++e) values[e] *= factor;
}

template <int kDim>
__device__ void AddValues(const FmaShared<kDim>& shared, int query, int lane,
                          ThreadOutput<kDim>& output) {
  for (int key = 0; key < kFmaKeys; ++key) {
    const float weights[2] = {shared.weights[query][key], shared.weights[query + kQueryStep][key]};
#pragma unroll
    for (int n = 0; n < kDim / 4 / kLanesPerQuery; ++n) {
      const Vector<float> v = LoadVector(&shared.rows[key][4 * (lane + n * kLanesPerQuery)]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) output.values[i][4 * n + e] += weights[i] * v.values[e];
      }
    }
  }
}

template <int kDim>
__device__ void WriteOutput(const AttentionArgs<float>& args, const QueryBlock& block, int query,
                            int lane, ThreadOutput<kDim>& output) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    SoftmaxState& softmax = output.softmax[i];
#pragma unroll
    for (int offset = kLanesPerQuery / 2; offset > 0; offset /= 2) {
      softmax.sum += __shfl_xor_sync(kFullMask, softmax.sum, offset);
    }
    const int index = query + i * kQueryStep;
    if (index >= block.count) continue;
    const float normalizer = softmax.Normalizer();
    float* out = args.out + ((block.token + index) * args.heads + block.head) * args.head_dim;
#pragma unroll
    for (int n = 0; n < kDim / 4 / kLanesPerQuery; ++n) {
      const int col = 4 * (lane + n * kLanesPerQuery);
      Vector<float> vector;
#pragma unroll
      for (int e = 0; e < 4; ++e) vector.values[e] = output.values[i][4 * n + e] * normalizer;
      if (col < args.head_dim) StoreVector(out + col, vector);
    }
  }
}

template <int kDim>
__global__ void __launch_bounds__(kFmaThreads) AttentionFmaKernel(AttentionArgs<float> args) {
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<FmaShared<kDim>*>(memory);
  __shared__ Query queries[kFmaQueries];
  __shared__ int64_t offsets[kFmaQueries];  // of queries, then of a tile's keys
  static_assert(kFmaQueries == kFmaKeys);
  const int thread = threadIdx.x, query = thread / kLanesPerQuery, lane = thread % kLanesPerQuery;
  const QueryBlock block = ThisBlock<kFmaQueries>(args);
  const float slope = args.alibi_slopes ? args.alibi_slopes[block.head] : 0.0f;

  ReadQueries(args, block, queries);
  if (thread < kFmaQueries) {
    const int64_t offset = ((block.token + thread) * args.heads + block.head) * args.head_dim;
    offsets[thread] = thread < block.count ? offset : -1;
  }
  __syncthreads();
  CopyRows(shared.queries, args.q, args.head_dim, offsets);
  ThreadOutput<kDim> output;

  for (int first = 0; first < kFmaQueries;) {
    const Segment segment = FindSegment(queries, first);
    first = segment.last;
    for (int tile_key = segment.keys.begin / kFmaKeys * kFmaKeys; tile_key < segment.keys.end;
         tile_key += kFmaKeys) {
      __syncthreads();  // the last offsets and values have been read
      if (thread < kFmaKeys) {
        offsets[thread] = SegmentKeyOffset(args, segment, block.kv_head, tile_key + thread);
      }
      __syncthreads();
      CopyRows(shared.rows, args.k, args.head_dim, offsets);
      __syncthreads();
      float scores[2][kKeysPerLane] = {};
      Products(shared, query, lane, scores);
      __syncthreads();  // the keys have been read
      CopyRows(shared.rows, args.v, args.head_dim, offsets);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int index = query + i * kQueryStep;
        const KeyRange keys = segment.Contains(index) ? queries[index].keys : KeyRange{0, 0};
        ToWeights<kDim>(args, slope, queries[index], keys, tile_key + lane, scores[i],
                        output.softmax[i], output.values[i]);
#pragma unroll
        for (int j = 0; j < kKeysPerLane; ++j) {
          shared.weights[index][lane + j * kLanesPerQuery] = scores[i][j];
        }
      }
      __syncthreads();
      AddValues(shared, query, lane, output);
    }
  }
  WriteOutput(args, block, query, lane, output);
}

}  // namespace eet
