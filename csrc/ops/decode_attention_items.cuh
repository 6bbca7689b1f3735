// The items of one warp, one after the other. All warps of the grid take turns: of the items that
// there are, token by token, warp w has w, w + warps, ... So each has its share whatever the rows'
// lengths, and nobody looks at parts that a row does not have.
#pragma once

#include "ops/decode_attention_split.cuh"

namespace eet {

// Lane t stands for token t of 32, whose items it counts. Rows and positions of the next 32 tokens
// are loaded ahead, so that no item is waited for. What an item is follows from its number, and is
// worked out anew where it is asked for, so that few registers keep a place in the walk.
template <typename T, int kSplits>
class ItemWalk {
 public:
  // At the warp's first item.
  __device__ ItemWalk(const DecodeAttentionArgs<T>& args, int lane) : args_(args), lane_(lane) {
    // Neighbours in order go to different multiprocessors.
    index_ = int(threadIdx.x) / kWarpSize * int(gridDim.x) + int(blockIdx.x);
    LoadAhead(0);
    Enter(0);
    Find();
  }

  // The item without heads, after the last.
  __device__ SplitItem Item() const {
    if (owner_ == kNobody) return {};
    const int before = __shfl_sync(kFullMask, end_, max(owner_ - 1, 0));
    return ItemOf<kSplits>(args_, first_token_ + owner_, __shfl_sync(kFullMask, row_, owner_),
                           __shfl_sync(kFullMask, position_, owner_),
                           index_ - (owner_ == 0 ? 0 : before));
  }

  __device__ void Next() {
    index_ += int(gridDim.x * blockDim.x / kWarpSize);
    Find();
  }

 private:
  static constexpr int kNobody = -1;

  __device__ void LoadAhead(int first_token) {
    const int64_t token = int64_t{first_token} + lane_;
    const bool exists = token < args_.tokens;
    next_row_ = exists ? args_.rows[token] : -1;
    next_position_ = exists ? args_.positions[token] : 0;
  }

  // Takes over the tokens that were loaded ahead.
  __device__ void Enter(int first_token) {
    first_token_ = first_token;
    row_ = next_row_;
    position_ = next_position_;
    end_ = PartsOf<kSplits>(SplitsOf(args_, row_, position_)) * ItemsOfPart(args_);
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int before = __shfl_up_sync(kFullMask, end_, step);
      if (lane_ >= step) end_ += before;
    }
    LoadAhead(first_token + kWarpSize);
  }

  // Finds out whose item the index is.
  __device__ void Find() {
    int items = ItemsEntered();
    while (index_ >= items) {
      if (first_token_ + kWarpSize >= args_.tokens) {
        owner_ = kNobody;
        return;
      }
      index_ -= items;
      Enter(first_token_ + kWarpSize);
      items = ItemsEntered();
    }
    owner_ = __popc(__ballot_sync(kFullMask, end_ <= index_));
  }

  __device__ int ItemsEntered() const { return __shfl_sync(kFullMask, end_, kWarpSize - 1); }

  const DecodeAttentionArgs<T>& args_;
  const int lane_;
  int first_token_, row_, position_;
  int next_row_, next_position_;  // of the token 32 further on
  int end_;                       // of the items of this lane's token and of those before
  int index_, owner_;             // the item among those of the 32 tokens, and its lane
};

}  // namespace eet
