// The items of one warp, one after the other. All warps of the grid take turns: of the items that
// there are, token by token, warp w has w, w + warps, ... So each has its share whatever the rows'
// lengths, and nobody looks at splits that a row does not have.
#pragma once

#include "core/lanes.cuh"
#include "ops/decode_attention_split.cuh"

namespace eet {

// Lane t stands for token t of 32, whose items it counts. Rows and positions of the next 32 tokens
// are loaded ahead, so that no item is waited for. What an item is follows from its number, and is
// worked out anew where it is asked for, so that few registers keep a place in the walk.
template <typename T>
class ItemWalk {
 public:
  // Before the warp's first item.
  __device__ ItemWalk(const DecodeAttentionArgs<T>& args, const ItemSizes& sizes, int lane)
      : args_(args), sizes_(sizes), lane_(lane) {
    // Neighbours in order go to different multiprocessors.
    index_ = Uniform(int(threadIdx.x) / kWarpSize) * int(gridDim.x) + int(blockIdx.x);
    LoadAhead();
  }

  // The next item; one without heads after the last.
  __device__ SplitItem Next() {
    while (index_ >= ItemsEntered()) {
      if (next_token_ >= args_.tokens) return {};
      index_ -= ItemsEntered();
      Enter();
    }
    const int owner = __popc(__ballot_sync(kFullMask, end_ <= index_));
    const int before = __shfl_sync(kFullMask, end_, max(owner - 1, 0));
    const SplitItem item =
        ItemOf(args_, sizes_, next_token_ - kWarpSize + owner, __shfl_sync(kFullMask, row_, owner),
               __shfl_sync(kFullMask, position_, owner), index_ - (owner == 0 ? 0 : before));
    index_ += int(gridDim.x * blockDim.x / kWarpSize);
    return item;
  }

 private:
  __device__ void LoadAhead() {
    const int64_t token = int64_t{next_token_} + lane_;
    const bool exists = token < args_.tokens;
    next_row_ = exists ? args_.rows[token] : -1;
    next_position_ = exists ? args_.positions[token] : 0;
  }

  // Takes over the tokens that were loaded ahead.
  __device__ void Enter() {
    row_ = next_row_;
    position_ = next_position_;
    end_ = SplitsOf(args_, row_, position_).count * sizes_.items;
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int before = __shfl_up_sync(kFullMask, end_, step);
      if (lane_ >= step) end_ += before;
    }
    next_token_ += kWarpSize;
    LoadAhead();
  }

  __device__ int ItemsEntered() const { return __shfl_sync(kFullMask, end_, kWarpSize - 1); }

  const DecodeAttentionArgs<T>& args_;
  const ItemSizes& sizes_;
  const int lane_;
  int row_, position_;
  int next_token_ = 0, next_row_, next_position_;  // of the tokens to be entered
  int end_ = 0;  // of the items of this lane's token and of those before
  int index_;    // of the next item among those of the 32 tokens
};

}  // namespace eet
