// The stream of decode_attention_stream.cuh by TMA: one lane loads whole tiles.
// The warp has more time to multiply, and the memory sees requests of two kilobytes.
#pragma once

#include "core/tensor_map.h"
#include "core/tma.cuh"
#include "ops/decode_attention_stream.cuh"

namespace eet {

// A cache of one layer as rows, one for each key of each head.
struct CacheMaps {
  CUtensorMap k, v;
};

// For columns in whole chunks, and pages in whole tiles.
template <int kDim, typename T>
bool TmaSupports(const DecodeAttentionArgs<T>& args) {
  const int64_t keys = args.pages * args.kv_heads * args.page_size;
  return ComputeMajor() == 9 && args.head_dim % kChunkColumns == 0 &&
         args.page_size % StreamShape<kDim>::kKeys == 0 && keys <= INT32_MAX;
}

// Returns false, with the reason left for the handler, where the driver refuses.
template <int kDim, typename T>
bool MakeCacheMaps(CacheMaps* maps, const DecodeAttentionArgs<T>& args) {
  const int64_t keys = args.pages * args.kv_heads * args.page_size;
  constexpr int kChunks = kDim / kChunkColumns, kKeys = StreamShape<kDim>::kKeys;
  return MakeTileMap(&maps->k, args.k, keys, args.head_dim, kKeys, kChunks) &&
         MakeTileMap(&maps->v, args.v, keys, args.head_dim, kKeys, kChunks);
}

// A box of such a map in shared memory.
template <typename T, int kDim, int kKeys>
struct BoxTile {
  static constexpr int kPieces = kChunkColumns / kChunk;  // of a row of a chunk
  static_assert(kDim % kChunkColumns == 0);
  T* data;  // [kDim / kChunkColumns, kKeys, kChunkColumns]

  __device__ T* Chunk(unsigned row, unsigned chunk) const {
    const unsigned line = chunk / kPieces * kKeys + row;
    return data + (line * kPieces + (chunk ^ row) % kPieces) * kChunk;
  }
};

template <typename T_, int kDim_>
class TmaKeys {
  using Shape = StreamShape<kDim_>;

 public:
  using T = T_;
  static constexpr int kDim = kDim_, kKeys = Shape::kKeys, kStages = Shape::kStages;
  static constexpr int kArchitecture = 900;
  using Tile = BoxTile<T, kDim, kKeys>;
  using Source = CacheMaps;
  struct alignas(1024) Memory {
    T data[kStages][2][Shape::kTile];
    StreamTile tiles[kStages];
    Barrier full[kStages];
  };

  __device__ TmaKeys(const DecodeAttentionArgs<T>& args, const ItemSizes& sizes,
                     const CacheMaps& maps, int lane, Memory& memory)
      : args_(args),
        maps_(maps),
        walk_(args, sizes, lane),
        memory_(memory),
        lane_(lane),
        read_once_(ReadOncePolicy()) {
    if (lane == 0) {
      for (Barrier& full : memory.full) full.Init(1);
      FenceBarrierInit();
    }
    FindPage();
  }

  __device__ bool NextIsOld() const { return walk_.IsOld(); }

  // Issues the next tile's loads, into the memory of the one that was taken last.
  __device__ void Start(int stage) {
    __syncwarp();  // all lanes have read it
    if (lane_ == 0) memory_.tiles[stage] = walk_.Tile();
    if (!walk_.exists()) return;
    if (lane_ == 0) Load(memory_.data[stage], memory_.full[stage]);
    walk_.Next();
    FindPage();
  }

  // What the oldest tile is.
  __device__ const StreamTile& Oldest(int stage) const {
    __syncwarp();  // the lane that loads it has told what it is
    return memory_.tiles[stage];
  }

  // Waits until it is there.
  __device__ void Await(const StreamTile& tile, int events, int stage, int parity) const {
    memory_.full[stage].Wait(parity);
    if (!(events & StreamTile::kIsWhole)) Clear(tile, stage);
  }

  __device__ Tile Keys(int stage) const { return {memory_.data[stage][0]}; }

  __device__ Tile Values(int stage) const { return {memory_.data[stage][1]}; }

 private:
  __device__ void Load(T (&data)[2][Shape::kTile], Barrier& full) const {
    const unsigned size = unsigned(args_.page_size);
    const int row = int((unsigned(page_) * unsigned(args_.kv_heads) + walk_.item().kv_head) * size +
                        unsigned(walk_.key()) % size);
    full.ArriveExpecting(sizeof(data));
    TmaLoadTile(data[0], maps_.k, 0, row, full, read_once_);
    TmaLoadTile(data[1], maps_.v, 0, row, full, read_once_);
  }

  // Zeros for values that no query sees: the tile has what the page has there, be it no number.
  __device__ void Clear(const StreamTile& tile, int stage) const {
    constexpr int kChunks = kDim / kChunk;
    for (int i = lane_; i < kKeys * kChunks; i += kWarpSize) {
      if (tile.Contains(tile.key + i / kChunks)) continue;
      *reinterpret_cast<uint4*>(Values(stage).Chunk(i / kChunks, i % kChunks)) = {};
    }
    FenceAsyncProxy();  // before the next tile comes here
    __syncwarp();
  }

  // The page of the next tile, a tile ahead: the table must not delay the loads.
  __device__ void FindPage() {
    const SplitItem& item = walk_.item();
    page_ = item.keys.empty() ? 0 : PageOf(args_, item.row, walk_.key());
  }

  const DecodeAttentionArgs<T>& args_;
  const CacheMaps& maps_;
  TileWalk<T, kKeys> walk_;  // at the next tile
  Memory& memory_;
  const int lane_;
  const uint64_t read_once_;
  int page_;
};

}  // namespace eet
