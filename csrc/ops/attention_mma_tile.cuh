// Pieces of attention on tensor cores: tiles in shared memory, and what a warp and a lane have of
// the queries, scores and output.
#pragma once

#include "core/mma.cuh"
#include "core/shared_tile.cuh"
#include "core/vector.cuh"
#include "ops/attention_tile.cuh"

namespace eet {

constexpr int kMmaWarps = 4, kMmaThreads = kMmaWarps * kWarpSize;
constexpr int kWarpQueries = 16, kMmaQueries = kMmaWarps * kWarpQueries;

// One lane's part of a warp's product with 64 keys: element [n][2 * i + j] is that of query
// lane / 4 + 8 * i and key 8 * n + lane % 4 * 2 + j.
using ScoreFragment = float[kTileKeys / 8][4];

// What a warp has accumulated for its 16 queries; a lane holds two of them, as in ScoreFragment.
template <int kDim>
struct WarpOutput {
  float values[kDim / 8][4] = {};
  SoftmaxState softmax[2];  // sums over this lane's keys only
};

// A lane's two queries, as far as they are of one segment, and what the warp's queries see.
struct WarpQueries {
  KeyRange keys[2];
  int position[2];
  KeyRange any, all;  // keys that some, that all of the warp's queries see

  __device__ WarpQueries(const Query (&queries)[kMmaQueries], const Segment& segment) {
    const int first = threadIdx.x / kWarpSize * kWarpQueries + threadIdx.x % kWarpSize / 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Query& query = queries[first + 8 * i];
      keys[i] = segment.Contains(first + 8 * i) ? query.keys : KeyRange{0, 0};
      position[i] = query.position;
    }
    any = WarpUnion(Union(keys[0], keys[1]));
    all = {__reduce_max_sync(kFullMask, max(keys[0].begin, keys[1].begin)),
           __reduce_min_sync(kFullMask, min(keys[0].end, keys[1].end))};
  }
};

// The queries of a warp as operands; where registers are short they are read again for each tile.
template <typename T, int kDim>
class QueryFragments {
 public:
  __device__ explicit QueryFragments(SharedTile<T, kDim> tile) : tile_(tile) {
    if constexpr (kKept) {
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) Read(k, kept_[k]);
    }
  }

  __device__ void Get(int k, uint32_t (&a)[4]) const {
    if constexpr (kKept) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = kept_[k][i];
    } else {
      Read(k, a);
    }
  }

 private:
  __device__ void Read(int k, uint32_t (&a)[4]) const {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    LoadMatrices(a, tile_.Chunk(warp * kWarpQueries + lane % 16, 2 * k + lane / 16));
  }

  static constexpr bool kKept = kDim <= 128;
  SharedTile<T, kDim> tile_;
  uint32_t kept_[kKept ? kDim / 16 : 1][4];
};

// Starts to copy rows given by their offsets, -1 for zeros; also zeros the columns past head_dim.
template <int kRows, typename T, int kDim>
__device__ void StartRows(const SharedTile<T, kDim>& tile, const T* source, int64_t head_dim,
                          const int64_t (&offsets)[kRows]) {
  constexpr int kChunks = SharedTile<T, kDim>::kChunks;
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < kRows * kChunks; i += kMmaThreads) {
    const unsigned row = i / kChunks, chunk = i % kChunks;
    const bool valid = offsets[row] >= 0 && chunk * kChunk < head_dim;
    CopyAsync16(tile.Chunk(row, chunk), valid ? source + offsets[row] + chunk * kChunk : source,
                valid);
  }
  CommitCopies();
}

}  // namespace eet
