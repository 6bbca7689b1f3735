// The keys and values that a warp works on, as one stream of tiles through its own shared memory.
// The stream does not end with an item: while the last tiles of one are multiplied, the first of
// the next are under way.
#pragma once

#include "core/mma.cuh"
#include "core/shared_tile.cuh"
#include "ops/decode_attention_items.cuh"

namespace eet {

constexpr int kStreamKeys = 16;  // of a tile

// 64 KiB of tiles a block, 48 for 96 columns: a GPU of 100 KiB holds one, Hopper three. Half of
// them under way are more than a multiprocessor needs to have its share of the memory's bandwidth.
template <int kDim>
struct StreamShape {
  static constexpr int kWarps = kDim <= 128 ? 4 : 2;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocks = 3;  // that registers leave room for
  static constexpr int kStages = kDim <= 64 ? 4 : 2;
  static constexpr int kTile = kStreamKeys * kDim;   // elements, of keys or of values
  static constexpr int kRing = kStages * 2 * kTile;  // of a warp
  static constexpr int kSharedBytes = kWarps * kRing * 2;
};

// The first tile of an item starts at a multiple of its size.
__device__ __forceinline__ int FirstTile(const SplitItem& item) {
  return item.keys.begin / kStreamKeys * kStreamKeys;
}

template <typename T, int kDim, int kSplits>
class KeyStream {
  using Shape = StreamShape<kDim>;

 public:
  // From the item at which `walk` is.
  __device__ KeyStream(const DecodeAttentionArgs<T>& args, const ItemWalk<T, kSplits>& walk,
                       int lane, T* memory)
      : args_(args), walk_(walk), memory_(memory), lane_(lane) {
    BeginItem();
    FindPage();
    for (int stage = 0; stage < Shape::kStages; ++stage) Start(stage);
  }

  // For the oldest tile.
  __device__ void Wait() const {
    WaitCopies<Shape::kStages - 1>();
    __syncwarp();  // the other lanes' copies are here too
  }

  __device__ SharedTile<T, kDim> Keys() const { return KeysOf(stage_); }

  __device__ SharedTile<T, kDim> Values() const { return {Keys().data + Shape::kTile}; }

  // Gives the tile's memory to the next one.
  __device__ void Advance() {
    __syncwarp();  // all lanes have read it
    Start(stage_);
    stage_ = stage_ + 1 == Shape::kStages ? 0 : stage_ + 1;
  }

 private:
  __device__ SharedTile<T, kDim> KeysOf(int stage) const {
    return {memory_ + 2 * stage * Shape::kTile};
  }

  __device__ void BeginItem() {
    item_ = walk_.Item();
    next_key_ = FirstTile(item_);
  }

  // Starts the next tile's copies. Without one it closes a group all the same: Wait counts them.
  __device__ void Start(int stage) {
    if (item_.heads > 0) {
      Copy(stage);
      next_key_ += kStreamKeys;
      if (next_key_ >= item_.keys.end) {
        walk_.Next();
        BeginItem();
      }
      FindPage();
    }
    CommitCopies();
  }

  // What no query sees, and the columns past head_dim, become zeros.
  __device__ void Copy(int stage) {
    constexpr int kChunks = SharedTile<T, kDim>::kChunks;
    const SharedTile<T, kDim> keys = KeysOf(stage), values{keys.data + Shape::kTile};
    const int64_t offset = KeyOffset(args_, page_, item_.kv_head, next_key_ + lane_ % kStreamKeys);
#pragma unroll
    for (int i = 0; i < kStreamKeys * kChunks / kWarpSize; ++i) {
      const int row = (i * kWarpSize + lane_) / kChunks, chunk = (i * kWarpSize + lane_) % kChunks;
      const int64_t from = __shfl_sync(kFullMask, offset, row) + chunk * kChunk;
      const bool valid = item_.keys.Contains(next_key_ + row) && chunk * kChunk < args_.head_dim;
      CopyAsync16(keys.Chunk(row, chunk), args_.k + (valid ? from : 0), valid);
      CopyAsync16(values.Chunk(row, chunk), args_.v + (valid ? from : 0), valid);
    }
  }

  // Of this lane's key of the next tile, a tile ahead: the table must not delay the copies.
  __device__ void FindPage() {
    const int key = next_key_ + lane_ % kStreamKeys;
    page_ = item_.keys.Contains(key) ? PageOf(args_, item_.row, key) : 0;
  }

  const DecodeAttentionArgs<T>& args_;
  ItemWalk<T, kSplits> walk_;
  SplitItem item_;   // of the next tile
  T* const memory_;  // [kStages, 2, kTile]
  const unsigned lane_;
  int next_key_, page_, stage_ = 0;
};

}  // namespace eet
