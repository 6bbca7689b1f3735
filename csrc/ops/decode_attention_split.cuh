// How decode attention is dealt on the GPU: an item is some query heads of one KV head over one
// split of a row's keys.
#pragma once

#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/round.h"
#include "ops/decode_attention.h"

namespace eet {

constexpr int kItemHeads = 8;  // query heads of an item at most: the columns of a product

struct SplitItem {
  int token = 0, row = 0, position = 0;
  int kv_head = 0, first_head = 0, heads = 0;  // heads: from the first on; 0: no item
  int split = 0, splits = 0;
  KeyRange keys = {};
};

// How many items there are.
struct ItemSizes {
  int group;   // query heads of a KV head
  int blocks;  // that these are divided into
  int items;   // of one split of a row, for all its heads

  template <typename T>
  explicit ItemSizes(const DecodeAttentionArgs<T>& args)
      : group(int(args.heads / args.kv_heads)),
        blocks(CeilDiv(group, kItemHeads)),
        items(int(args.kv_heads) * blocks) {}
};

// Item `index` of a token, split by split; without heads beyond its last.
template <typename T>
__device__ SplitItem ItemOf(const DecodeAttentionArgs<T>& args, const ItemSizes& sizes, int token,
                            int row, int position, int index) {
  const KeySplits splits = SplitsOf(args, row, position);
  const int split = unsigned(index) / unsigned(sizes.items), block = index - split * sizes.items;
  if (split >= splits.count) return {};
  const int kv_head = unsigned(block) / unsigned(sizes.blocks);
  const int head = (block - kv_head * sizes.blocks) * kItemHeads;
  return {.token = token,
          .row = row,
          .position = position,
          .kv_head = kv_head,
          .first_head = kv_head * sizes.group + head,
          .heads = min(kItemHeads, sizes.group - head),
          .split = split,
          .splits = splits.count,
          .keys = splits[split]};
}

}  // namespace eet
