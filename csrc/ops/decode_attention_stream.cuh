// The keys and values that a warp works on, as one stream of tiles through its own shared memory.
// The stream does not end with an item: while the last tiles of one are multiplied, the first of
// the next are under way.
#pragma once

#include "core/mma.cuh"
#include "core/shared_tile.cuh"
#include "ops/decode_attention_items.cuh"

namespace eet {

// 96 KiB of tiles a block at the most: a GPU of 100 KiB holds one, Hopper two. Half of them under
// way are more than a multiprocessor needs to have its share of the memory's bandwidth. What counts
// is a warp's instructions: it issues one in about seven cycles. So tiles are large, to keep
// instructions few, and a warp has registers for all it needs.
template <int kDim>
struct StreamShape {
  static constexpr int kWarps = kDim <= 128 ? 4 : 2;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocks = 2;  // on a multiprocessor
  static constexpr int kStages = 3;
  static constexpr int kKeys = kDim <= 64 ? 32 : 16;  // of a tile
  static constexpr int kTile = kKeys * kDim;          // elements, of keys or of values
};

// What a tile is, for who multiplies it. In shared memory beside the tile, as the stream is ahead.
struct alignas(16) StreamTile {
  // What comes about with it; without kExists there is no tile.
  static constexpr int kExists = 1, kBeginsItem = 2, kEndsItem = 4, kIsWhole = 8;

  int events;
  int token, position;
  int first_head, heads;
  int key;         // the tile's first
  int begin, end;  // keys of the item
  int split, splits;

  __device__ bool Contains(int some_key) const { return some_key >= begin && some_key < end; }
};

// The tiles of a warp's items, kKeys keys each, one after the other.
template <typename T, int kKeys>
class TileWalk {
 public:
  __device__ TileWalk(const DecodeAttentionArgs<T>& args, const ItemSizes& sizes, int lane)
      : items_(args, sizes, lane) {
    Begin();
  }

  __device__ bool exists() const { return item_.heads > 0; }

  __device__ const SplitItem& item() const { return item_; }

  __device__ int key() const { return key_; }  // the tile's first

  // Whether all its keys are there since before this step.
  __device__ bool IsOld() const { return exists() && key_ + kKeys <= item_.position; }

  __device__ StreamTile Tile() const {
    const int next = key_ + kKeys;
    int events = exists() ? StreamTile::kExists : 0;
    if (key_ <= item_.keys.begin) events |= StreamTile::kBeginsItem;
    if (next >= item_.keys.end) events |= StreamTile::kEndsItem;
    if (key_ >= item_.keys.begin && next <= item_.keys.end) events |= StreamTile::kIsWhole;
    return {.events = events,
            .token = item_.token,
            .position = item_.position,
            .first_head = item_.first_head,
            .heads = item_.heads,
            .key = key_,
            .begin = item_.keys.begin,
            .end = item_.keys.end,
            .split = item_.split,
            .splits = item_.splits};
  }

  __device__ void Next() {
    key_ += kKeys;
    if (key_ >= item_.keys.end) Begin();
  }

 private:
  // An item's first tile starts at a multiple of its size.
  __device__ void Begin() {
    item_ = items_.Next();
    key_ = item_.keys.begin / kKeys * kKeys;
  }

  ItemWalk<T> items_;
  SplitItem item_;
  int key_;
};

// Loaded by the warp's lanes with cp.async, 16 bytes at a time.
template <typename T_, int kDim_>
class CpAsyncKeys {
  using Shape = StreamShape<kDim_>;

 public:
  using T = T_;
  static constexpr int kDim = kDim_, kKeys = Shape::kKeys, kStages = Shape::kStages;
  static constexpr int kArchitecture = 800;
  using Tile = SharedTile<T, kDim>;
  struct Source {};  // all it needs is in the arguments
  struct alignas(128) Memory {
    T data[kStages][2][Shape::kTile];
    StreamTile tiles[kStages];
  };

  __device__ CpAsyncKeys(const DecodeAttentionArgs<T>& args, const ItemSizes& sizes, const Source&,
                         int lane, Memory& memory)
      : args_(args), walk_(args, sizes, lane), memory_(memory), lane_(lane) {
    FindPage();
  }

  __device__ bool NextIsOld() const { return walk_.IsOld(); }

  // Starts the next tile's copies, in the memory of the one that was taken last. Without a tile it
  // closes a group all the same: Await counts them.
  __device__ void Start(int stage) {
    __syncwarp();  // all lanes have read it
    if (lane_ == 0) memory_.tiles[stage] = walk_.Tile();
    if (walk_.exists()) {
      Copy(stage);
      walk_.Next();
      FindPage();
    }
    CommitCopies();
  }

  // What the oldest tile is.
  __device__ const StreamTile& Oldest(int stage) const {
    __syncwarp();  // who started it has told what it is
    return memory_.tiles[stage];
  }

  // Waits until it is there.
  __device__ void Await(const StreamTile&, int, int, int) const {
    WaitCopies<kStages - 1>();
    __syncwarp();  // the other lanes' copies are here too
  }

  __device__ Tile Keys(int stage) const { return {memory_.data[stage][0]}; }

  __device__ Tile Values(int stage) const { return {memory_.data[stage][1]}; }

 private:
  // What no query sees, and the columns past head_dim, become zeros.
  __device__ void Copy(int stage) const {
    const SplitItem& item = walk_.item();
    const int64_t offset = KeyOffset(args_, page_, item.kv_head, walk_.key() + lane_ % kKeys);
#pragma unroll
    for (int i = 0; i < kKeys * Tile::kChunks / kWarpSize; ++i) {
      const int row = (i * kWarpSize + lane_) / Tile::kChunks;
      const int chunk = (i * kWarpSize + lane_) % Tile::kChunks;
      const int64_t from = __shfl_sync(kFullMask, offset, row) + chunk * kChunk;
      const bool valid = item.keys.Contains(walk_.key() + row) && chunk * kChunk < args_.head_dim;
      CopyAsync16(Keys(stage).Chunk(row, chunk), args_.k + (valid ? from : 0), valid);
      CopyAsync16(Values(stage).Chunk(row, chunk), args_.v + (valid ? from : 0), valid);
    }
  }

  // The page of this lane's key of the next tile, a tile ahead: the table must not delay the
  // copies.
  __device__ void FindPage() {
    const int key = walk_.key() + lane_ % kKeys;
    page_ = walk_.item().keys.Contains(key) ? PageOf(args_, walk_.item().row, key) : 0;
  }

  const DecodeAttentionArgs<T>& args_;
  TileWalk<T, kKeys> walk_;  // at the next tile
  Memory& memory_;
  const unsigned lane_;
  int page_;
};

}  // namespace eet
