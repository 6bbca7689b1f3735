// What the attention kernels share on the GPU: which queries a block has, and the rows among them.
#pragma once

#include <climits>

#include "core/reduce.cuh"
#include "core/round.h"
#include "ops/attention.h"

namespace eet {

// Queries [token, token + count) of one head. Dense blocks stay within a batch row; packed ones
// take tokens as they come.
struct QueryBlock {
  int64_t token, head, kv_head;
  int count;
};

// Blocks are numbered heads first, then batch rows, then tiles from the last, which sees most keys.
template <typename T>
__host__ __device__ int64_t QueryGroups(const AttentionArgs<T>& args) {
  return args.rows ? 1 : args.batch;
}

template <typename T>
__host__ __device__ int64_t QueryTiles(const AttentionArgs<T>& args, int queries) {
  return CeilDiv(args.rows ? args.tokens : args.query_len, queries);
}

template <int kQueries, typename T>
__device__ QueryBlock ThisBlock(const AttentionArgs<T>& args) {
  const int64_t index = blockIdx.x / args.heads, groups = QueryGroups(args);
  const int64_t group_len = args.rows ? args.tokens : args.query_len;
  const int64_t first = (QueryTiles(args, kQueries) - 1 - index / groups) * kQueries;
  const int64_t head = blockIdx.x % args.heads;
  return {.token = index % groups * group_len + first,
          .head = head,
          .kv_head = head / (args.heads / args.kv_heads),
          .count = int(min(int64_t{kQueries}, group_len - first))};
}

// Queries [first, last) of a block, all of one row, and the keys that any of them sees.
struct Segment {
  int first, last, row;
  KeyRange keys;

  __device__ bool Contains(int query) const { return query >= first && query < last; }
};

// The union over a warp.
__device__ inline KeyRange WarpUnion(KeyRange keys) {
  return {__reduce_min_sync(kFullMask, keys.empty() ? INT_MAX : keys.begin),
          __reduce_max_sync(kFullMask, keys.empty() ? 0 : keys.end)};
}

// The segment that starts at `first`, found by each warp for itself.
template <int kQueries>
__device__ Segment FindSegment(const Query (&queries)[kQueries], int first) {
  const int lane = threadIdx.x % kWarpSize;
  Segment segment{.first = first, .last = kQueries, .row = queries[first].row, .keys = {}};
  for (int i = lane; i < kQueries; i += kWarpSize) {
    if (i > first && queries[i].row != segment.row) segment.last = min(segment.last, i);
  }
  segment.last = __reduce_min_sync(kFullMask, segment.last);
  for (int i = lane; i < kQueries; i += kWarpSize) {
    if (segment.Contains(i)) segment.keys = Union(segment.keys, queries[i].keys);
  }
  segment.keys = WarpUnion(segment.keys);
  return segment;
}

// Reads what the block's queries are; the rest of the tile sees nothing. Needs a barrier after.
template <int kQueries, typename T>
__device__ void ReadQueries(const AttentionArgs<T>& args, const QueryBlock& block,
                            Query (&queries)[kQueries]) {
  for (int i = threadIdx.x; i < kQueries; i += blockDim.x) {
    queries[i] = i < block.count ? QueryOf(args, block.token + i)
                                 : Query{.row = -1, .position = 0, .keys = {}};
  }
}

// Where a key of the segment starts, -1 for one that nobody sees, which may not even be there.
template <typename T>
__device__ int64_t SegmentKeyOffset(const AttentionArgs<T>& args, const Segment& segment,
                                    int64_t kv_head, int key) {
  return segment.keys.Contains(key) ? KeyOffset(args, segment.row, kv_head, key) : -1;
}

}  // namespace eet
