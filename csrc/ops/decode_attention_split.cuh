// How decode attention is dealt on the GPU: an item is some query heads of one KV head over one
// split of a row's keys.
#pragma once

#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "ops/decode_attention.h"

namespace eet {

constexpr int kItemHeads = 8;  // query heads of an item at most: the columns of a product

struct SplitItem {
  int token = 0, row = 0, position = 0;
  int kv_head = 0, first_head = 0, heads = 0;  // heads: from the first on; 0: no item
  int split = 0, splits = 0;
  KeyRange keys = {};
};

// Into how many blocks the query heads of a KV head are divided.
template <typename T>
EET_HOST_DEVICE int HeadBlocks(const DecodeAttentionArgs<T>& args) {
  return (int(args.heads) / int(args.kv_heads) + kItemHeads - 1) / kItemHeads;
}

// Of one split of a row, for all its heads.
template <typename T>
EET_HOST_DEVICE int ItemsOfSplit(const DecodeAttentionArgs<T>& args) {
  return int(args.kv_heads) * HeadBlocks(args);
}

// Item `index` of a token, split by split; without heads beyond its last.
template <typename T>
__device__ SplitItem ItemOf(const DecodeAttentionArgs<T>& args, int token, int row, int position,
                            int index) {
  const KeySplits splits = SplitsOf(args, row, position);
  const int split = index / ItemsOfSplit(args), block = index % ItemsOfSplit(args);
  if (split >= splits.count) return {};
  const int group = int(args.heads) / int(args.kv_heads);
  const int kv_head = block / HeadBlocks(args);
  const int head = block % HeadBlocks(args) * kItemHeads;
  return {.token = token,
          .row = row,
          .position = position,
          .kv_head = kv_head,
          .first_head = kv_head * group + head,
          .heads = min(kItemHeads, group - head),
          .split = split,
          .splits = splits.count,
          .keys = splits[split]};
}

}  // namespace eet
