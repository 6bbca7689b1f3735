// How decode attention is dealt on the GPU: an item is some query heads of one KV head over one
// part of a row's keys, a split or a run of splits.
#pragma once

#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "ops/decode_attention.h"

namespace eet {

constexpr int kItemHeads = 8;  // query heads of an item at most: the columns of a product

struct SplitItem {
  int token = 0, row = 0, position = 0;
  int kv_head = 0, first_head = 0, heads = 0;  // heads: from the first on; 0: no item
  int part = 0, parts = 0;                     // of the row
  int split_end = 0, split_size = 0;           // the end of the item's first split
  KeyRange keys = {};
};

// How many items there are.
struct ItemSizes {
  int group;   // query heads of a KV head
  int blocks;  // that these are divided into
  int items;   // of one part of a row, for all its heads

  template <typename T>
  explicit ItemSizes(const DecodeAttentionArgs<T>& args)
      : group(int(args.heads / args.kv_heads)),
        blocks((group + kItemHeads - 1) / kItemHeads),
        items(int(args.kv_heads) * blocks) {}
};

// Parts of so many splits each. A row without keys has one all the same, whose output is zeros.
template <int kSplits>
EET_HOST_DEVICE int PartsOf(const KeySplits& splits) {
  return splits.count == 0 ? 1 : (splits.count + kSplits - 1) / kSplits;
}

// Item `index` of a token, part by part; without heads beyond its last.
template <int kSplits, typename T>
__device__ SplitItem ItemOf(const DecodeAttentionArgs<T>& args, const ItemSizes& sizes, int token,
                            int row, int position, int index) {
  const KeySplits splits = SplitsOf(args, row, position);
  const int part = unsigned(index) / unsigned(sizes.items), block = index - part * sizes.items;
  if (part >= PartsOf<kSplits>(splits)) return {};
  const int kv_head = unsigned(block) / unsigned(sizes.blocks);
  const int head = (block - kv_head * sizes.blocks) * kItemHeads;
  return {.token = token,
          .row = row,
          .position = position,
          .kv_head = kv_head,
          .first_head = kv_head * sizes.group + head,
          .heads = min(kItemHeads, sizes.group - head),
          .part = part,
          .parts = PartsOf<kSplits>(splits),
          .split_end = splits.first + (part * kSplits + 1) * splits.size,
          .split_size = splits.size,
          .keys = splits.Run(part * kSplits, kSplits)};
}

// Of a run and its next split, by the factors that their softmax states' merge has given. One
// rounding after the other, so that bits do not depend on the code around it.
__device__ __forceinline__ float MergeSums(float run, float before, float split, float factor) {
  return fmaf(split, factor, run * before);
}

}  // namespace eet
