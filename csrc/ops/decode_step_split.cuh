// How attention is dealt: an item is some query heads of one KV head over one split of a row's
// keys, and one warp's work. Splits depend on the row's own length alone, so neighbours change no
// bit of a row; where they go is for balance only.
#pragma once

#include "ops/decode_attention.h"
#include "ops/decode_step_block.cuh"

namespace eet {

constexpr int kItemHeads = 8;      // the columns of a product
constexpr int kMergeColumns = 16;  // of a merge task

struct AttentionItem {
  int token = 0, kv_head = 0, first_head = 0, heads = 0;  // heads: of the group from the first on
  int split = 0, splits = 1;
  int position = 0;
  KeyRange keys = {};  // of the split; the last one ends with the token itself
  int first_key = 0, tiles = 0;
};

// A task of the merge: some columns of one head of a row that has several splits.
struct MergeTask {
  int token, head, column, splits;
};

// The items of all rows of a layer. Lane t of the warp stands for token t.
template <typename T>
class ItemDeal {
 public:
  // kTileKeys: keys of a tile.
  __device__ ItemDeal(const StepBlock<T>& block, int tile_keys)
      : block_(block), tile_keys_(tile_keys), splits_(KeyRange{}) {}

  // Deals the items of a layer; those of most layers are the same, and dealing takes 2 us.
  __device__ __forceinline__ void Deal(int layer) {
    const int window = block_.Window(layer);
    if (window == window_) return;
    window_ = window;
    DealWindow();
  }

  __device__ int items() const { return items_; }
  __device__ int tasks() const { return tasks_; }

  // Warps that have tasks.
  __device__ int merging_warps() const { return min(tasks_, int(gridDim.x) * kConsumerWarps); }

  // Rounds in which each consumer warp of this block has at most one item.
  __device__ int rounds() const { return rounds_; }

  // The item of consumer warp `lane` in a round, for lanes below kConsumerWarps; others, and warps
  // without one, get an item without heads and tiles. Found anew in every layer: kept, it would
  // take the registers that attention needs.
  __device__ __forceinline__ AttentionItem ItemOfLane(int round) const {
    const int lane = LaneId();
    const int index = int(blockIdx.x) + int(gridDim.x) * (round * kConsumerWarps + lane);
    const int token = Owner(items_end_, index);
    const int end_before = __shfl_sync(kFullMask, items_end_, max(token - 1, 0));
    const int count = max(__shfl_sync(kFullMask, splits_.count, token), 1);
    AttentionItem item;
    item.token = token;
    item.position = __shfl_sync(kFullMask, position_, token);
    KeySplits splits(KeyRange{});
    splits.keys.begin = __shfl_sync(kFullMask, splits_.keys.begin, token);
    splits.keys.end = __shfl_sync(kFullMask, splits_.keys.end, token);
    splits.first = __shfl_sync(kFullMask, splits_.first, token);
    splits.size = __shfl_sync(kFullMask, splits_.size, token);
    if (lane >= kConsumerWarps || index >= items_) return {};
    const int local = index - (token == 0 ? 0 : end_before), heads = local / count;
    item.split = local % count;
    item.splits = count;
    item.kv_head = heads / head_blocks_;
    item.first_head = heads % head_blocks_ * kItemHeads;
    item.heads = min(group_ - item.first_head, kItemHeads);
    item.keys = splits[item.split];
    if (item.keys.empty()) return item;
    item.first_key = item.keys.begin / tile_keys_ * tile_keys_;
    item.tiles = (item.keys.end - item.first_key + tile_keys_ - 1) / tile_keys_;
    return item;
  }

  __device__ MergeTask Task(int index) const {
    const DecodeStepSizes& sizes = block_.sizes();
    const int token = Owner(tasks_end_, index);
    const int end = __shfl_sync(kFullMask, tasks_end_, token);
    const int slices = int(sizes.head_dim) / kMergeColumns;
    const int local = index - (end - int(sizes.heads) * slices);
    return {token, local / slices, local % slices * kMergeColumns,
            __shfl_sync(kFullMask, splits_.count, token)};
  }

 private:
  __device__ void DealWindow() {
    const DecodeStepSizes& sizes = block_.sizes();
    const int lane = LaneId();
    items_end_ = 0;
    splits_ = KeySplits(KeyRange{});
    group_ = int(sizes.heads) / int(sizes.kv_heads);
    head_blocks_ = (group_ + kItemHeads - 1) / kItemHeads;
    int tasks = 0;
    if (lane < sizes.batch) {
      position_ = block_.words.positions[lane];
      if (block_.words.rows[lane] >= 0) {
        const int64_t max_keys = sizes.max_pages * sizes.page_size;
        splits_ = KeySplits(VisibleKeys(position_, max_keys, window_, /*causal=*/true), tile_keys_,
                            tile_keys_);
      }
      // A row without a token has one item, which publishes zeros.
      items_end_ = max(splits_.count, 1) * int(sizes.kv_heads) * head_blocks_;
      if (splits_.count > 1) tasks = int(sizes.heads * sizes.head_dim / kMergeColumns);
    }
    tasks_end_ = tasks;
#pragma unroll
    for (int step = 1; step < kStepTokens; step *= 2) {
      const int items = __shfl_up_sync(kFullMask, items_end_, step);
      const int more = __shfl_up_sync(kFullMask, tasks_end_, step);
      if (lane >= step) {
        items_end_ += items;
        tasks_end_ += more;
      }
    }
    items_ = __shfl_sync(kFullMask, items_end_, LastToken());
    tasks_ = __shfl_sync(kFullMask, tasks_end_, LastToken());
    const int mine = (items_ - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x);
    rounds_ = (max(mine, 0) + kConsumerWarps - 1) / kConsumerWarps;
  }

  __device__ int LastToken() const { return block_.batch() - 1; }

  // The token whose part holds `index`, by the parts' ends; the last for an index beyond.
  __device__ int Owner(int ends, int index) const {
    int owner = 0;
    for (int token = 0; token < LastToken(); ++token) {
      owner += index >= __shfl_sync(kFullMask, ends, token);
    }
    return owner;
  }

  const StepBlock<T>& block_;
  const int tile_keys_;
  KeySplits splits_;
  int window_ = -1;  // of what is dealt
  int position_ = 0, group_, head_blocks_;
  int items_end_ = 0, tasks_end_ = 0;  // up to and with this lane's token
  int items_ = 0, tasks_ = 0, rounds_ = 0;
};

}  // namespace eet
