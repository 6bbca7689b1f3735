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
  static constexpr int kTile = kStreamKeys * kDim;  // elements, of keys or of values
};

// The first tile of an item starts at a multiple of its size.
__device__ __forceinline__ int FirstTile(const SplitItem& item) {
  return item.keys.begin / kStreamKeys * kStreamKeys;
}

// The tiles of a warp's items, one after the other.
template <typename T, int kSplits>
class TileWalk {
 public:
  // From the item at which `items` is.
  __device__ explicit TileWalk(const ItemWalk<T, kSplits>& items) : items_(items) { Begin(); }

  __device__ bool exists() const { return item_.heads > 0; }

  __device__ const SplitItem& item() const { return item_; }

  __device__ int key() const { return key_; }  // the tile's first

  // Whether all its keys are there since before this step.
  __device__ bool IsOld() const { return exists() && key_ + kStreamKeys <= item_.position; }

  __device__ void Next() {
    key_ += kStreamKeys;
    if (key_ < item_.keys.end) return;
    items_.Next();
    Begin();
  }

 private:
  __device__ void Begin() {
    item_ = items_.Item();
    key_ = FirstTile(item_);
  }

  ItemWalk<T, kSplits> items_;
  SplitItem item_;
  int key_;
};

// Fills the stages of a stream; waits for the kernels in front. Where the cache is ready, tiles
// that they do not write are under way before.
template <int kStages, class Stream>
__device__ __forceinline__ void FillStages(Stream& stream, bool cache_is_ready) {
  int stage = 0;
  while (cache_is_ready && stage < kStages && stream.NextIsOld()) stream.Start(stage++);
  WaitForKernelsBefore();
  while (stage < kStages) stream.Start(stage++);
}

// By the warp's lanes, 16 bytes at a time.
template <typename T_, int kDim_, int kSplits_>
class CopiedKeys {
  using Shape = StreamShape<kDim_>;

 public:
  using T = T_;
  static constexpr int kDim = kDim_, kSplits = kSplits_;
  using Tile = SharedTile<T, kDim>;
  struct Source {};  // the arguments tell it all
  struct alignas(128) Memory {
    T tiles[Shape::kStages][2][Shape::kTile];
  };

  __device__ CopiedKeys(const DecodeAttentionArgs<T>& args, const Source&,
                        const ItemWalk<T, kSplits>& walk, int lane, Memory& memory)
      : args_(args), walk_(walk), memory_(memory), lane_(lane) {
    FindPage();
    FillStages<Shape::kStages>(*this, args.cache_is_ready);
  }

  // For the oldest tile.
  __device__ void Wait() const {
    WaitCopies<Shape::kStages - 1>();
    __syncwarp();  // the other lanes' copies are here too
  }

  __device__ Tile Keys() const { return {memory_.tiles[stage_][0]}; }

  __device__ Tile Values() const { return {memory_.tiles[stage_][1]}; }

  // What no query sees, and the columns past head_dim, are zeros already.
  __device__ void Clear(int, const KeyRange&) const {}

  // Gives the tile's memory to the next one.
  __device__ void Advance() {
    __syncwarp();  // all lanes have read it
    Start(stage_);
    stage_ = stage_ + 1 == Shape::kStages ? 0 : stage_ + 1;
  }

  __device__ bool NextIsOld() const { return walk_.IsOld(); }

  // Starts the next tile's copies. Without one it closes a group all the same: Wait counts them.
  __device__ void Start(int stage) {
    if (walk_.exists()) {
      Copy(stage);
      walk_.Next();
      FindPage();
    }
    CommitCopies();
  }

 private:
  __device__ void Copy(int stage) {
    const SplitItem& item = walk_.item();
    const Tile keys{memory_.tiles[stage][0]}, values{memory_.tiles[stage][1]};
    const int64_t offset = KeyOffset(args_, page_, item.kv_head, walk_.key() + lane_ % kStreamKeys);
#pragma unroll
    for (int i = 0; i < kStreamKeys * Tile::kChunks / kWarpSize; ++i) {
      const int row = (i * kWarpSize + lane_) / Tile::kChunks;
      const int chunk = (i * kWarpSize + lane_) % Tile::kChunks;
      const int64_t from = __shfl_sync(kFullMask, offset, row) + chunk * kChunk;
      const bool valid = item.keys.Contains(walk_.key() + row) && chunk * kChunk < args_.head_dim;
      CopyAsync16(keys.Chunk(row, chunk), args_.k + (valid ? from : 0), valid);
      CopyAsync16(values.Chunk(row, chunk), args_.v + (valid ? from : 0), valid);
    }
  }

  // Of this lane's key of the next tile, a tile ahead: the table must not delay the copies.
  __device__ void FindPage() {
    const int key = walk_.key() + lane_ % kStreamKeys;
    page_ = walk_.item().keys.Contains(key) ? PageOf(args_, walk_.item().row, key) : 0;
  }

  const DecodeAttentionArgs<T>& args_;
  TileWalk<T, kSplits> walk_;  // at the next tile
  Memory& memory_;
  const unsigned lane_;
  int page_, stage_ = 0;
};

}  // namespace eet
