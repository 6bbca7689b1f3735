// The loader and the cleaner of attention on Hopper, a warp each.
#pragma once

#include "core/reduce.cuh"
#include "ops/attention_sm90_shape.cuh"

namespace eet {

// How TMA finds queries, keys and values. Boxes are [rows, kChunk] of one head; keys
// and values come in boxes of `piece` keys, which divide page and tile, or whole where there are no
// pages.
struct AttentionMaps {
  CUtensorMap q;      // (head_dim, heads, tokens, 1)
  CUtensorMap k, v;   // (head_dim, kv_heads, key_len, batch), or
                      // (head_dim, page_size, kv_heads, pages)
  int piece, pieces;  // of a tile
};

// Whether some keys of a tile are not the unit's.
template <class Shape>
__device__ bool IsEdge(const Unit& unit, int tile) {
  return tile * Shape::kKeys < unit.keys.begin || (tile + 1) * Shape::kKeys > unit.keys.end;
}

// Loads tiles in the sequence in which they are wanted: the keys of the next before the values of
// this one.
template <class Shape>
class Loader {
 public:
  using T = typename Shape::T;

  __device__ Loader(const AttentionArgs<T>& args, const AttentionMaps& maps,
                    AttentionShared<Shape>& shared)
      : args_(args), maps_(maps), shared_(shared) {}

  __device__ void Run() {
    for (RingSlot<kUnitSlots> slot;; slot.Advance()) {
      shared_.unit_full[slot.index].Wait(slot.parity);
      const Unit& unit = shared_.units[slot.index];
      if (unit.count == 0) return;
      if (unit.tiles() > 0) Load(unit);
      __syncwarp();
      shared_.unit_empty[slot.index].ArriveAsWarp(Lane());
    }
  }

 private:
  // Read anew each time: the loader has registers for little else than its place in the rings.
  static __device__ __forceinline__ int Lane() { return LaneId(); }

  // Where a piece of a tile's keys is.
  struct Place {
    int page, key;  // the row and a key of it, where there are no pages
  };

  // This lane's first piece is looked up a tile ahead: the page table's memory is far.
  __device__ void Load(const Unit& unit) {
    const int last = unit.last_tile, first = last + 1 - unit.tiles();
    Place of_keys = Find(unit, last, Lane() / Shape::kChunks), of_values = {};
    for (int tile = last + 1; tile >= first; --tile) {
      const Place ahead = Find(unit, max(tile - 2, 0), Lane() / Shape::kChunks);
      if (tile > first) LoadKeys(unit, tile - 1, of_keys);
      if (tile > last) {
        LoadQueries(unit);
      } else {
        LoadValues(unit, tile, of_values);
      }
      of_values = of_keys;
      of_keys = ahead;
    }
  }

  __device__ __forceinline__ Place Find(const Unit& unit, int tile, int piece) const {
    const int key = tile * Shape::kKeys + piece * maps_.piece;
    if (!args_.page_table) return {unit.row, key};
    if (key >= unit.keys.end) return {};
    const uint32_t page_size = uint32_t(args_.page_size), page = uint32_t(key) / page_size;
    const uint32_t at = uint32_t(unit.row) * uint32_t(args_.max_pages) + page;
    return {args_.page_table[at], int(uint32_t(key) - page * page_size)};
  }

  __device__ void LoadQueries(const Unit& unit) {
#pragma unroll 1
    for (int group = 0; group < Shape::kGroups; ++group) {
      shared_.query_empty[group].Wait(query_parity_ ^ 1);
      Barrier& full = shared_.query_full[group];
      full.ArriveAsWarpExpecting(Lane(), Shape::kGroupBytes);
      __syncwarp();
      if (Lane() < Shape::kChunks) {
        TmaLoad(SharedAddress(shared_.queries[group]) + Lane() * kGroupRows * Shape::kSpan, maps_.q,
                Lane() * Shape::kChunk, unit.head, unit.token + group * kGroupRows, 0, full);
      }
    }
    query_parity_ ^= 1;
  }

  __device__ void LoadKeys(const Unit& unit, int tile, const Place& place) {
    const int at = keys_.index;
    shared_.key_empty[at].Wait(keys_.parity ^ 1);
    LoadTile(maps_.k, unit, tile, place, SharedAddress(shared_.keys[at]), shared_.key_full[at]);
    keys_.Advance();
  }

  __device__ void LoadValues(const Unit& unit, int tile, const Place& place) {
    const int at = values_.index;
    Barrier& full = IsEdge<Shape>(unit, tile) ? shared_.value_landed[at] : shared_.value_full[at];
    shared_.value_empty[at].Wait(values_.parity ^ 1);
    LoadTile(maps_.v, unit, tile, place, SharedAddress(shared_.values[at]), full);
    values_.Advance();
  }

  // Loads what a tile has of the unit's keys, in whole pieces.
  __device__ void LoadTile(const CUtensorMap& map, const Unit& unit, int tile, Place place,
                           uint32_t shared, Barrier& full) {
    const int piece = maps_.piece;
    int begin = 0, end = maps_.pieces;
    if (IsEdge<Shape>(unit, tile)) {
      const int tile_key = tile * Shape::kKeys;
      begin = max(unit.keys.begin - tile_key, 0) / piece;
      end = min((unit.keys.end - tile_key + piece - 1) / piece, end);
    }
    full.ArriveAsWarpExpecting(Lane(), (end - begin) * piece * Shape::kSpan * Shape::kChunks);
    __syncwarp();
#pragma unroll 1
    for (int i = Lane(); i < end * Shape::kChunks; i += kWarpSize) {
      const int at = i / Shape::kChunks, chunk = i % Shape::kChunks;
      if (i >= kWarpSize) place = Find(unit, tile, at);
      if (at < begin) continue;
      CopyPiece(map, unit, place, chunk * Shape::kChunk,
                shared + (chunk * Shape::kKeys + at * piece) * Shape::kSpan, full);
    }
  }

  __device__ __forceinline__ void CopyPiece(const CUtensorMap& map, const Unit& unit,
                                            const Place& place, int col, uint32_t to,
                                            Barrier& full) const {
    if (args_.page_table) {
      TmaLoad(to, map, col, place.key, unit.kv_head, place.page, full);
    } else {
      TmaLoad(to, map, col, unit.kv_head, place.key, place.page, full);
    }
  }

  const AttentionArgs<T>& args_;
  const AttentionMaps& maps_;
  AttentionShared<Shape>& shared_;
  RingSlot<Shape::kStages> keys_, values_;
  int query_parity_ = 0;
};

// Zeroes the values that no query of the unit sees: they may be anything, and zero times anything
// is not always zero.
template <class Shape>
class Cleaner {
 public:
  __device__ explicit Cleaner(AttentionShared<Shape>& shared)
      : shared_(shared), lane_(threadIdx.x % kWarpSize) {}

  __device__ void Run() {
    for (RingSlot<kUnitSlots> slot;; slot.Advance()) {
      shared_.unit_full[slot.index].Wait(slot.parity);
      const Unit& unit = shared_.units[slot.index];
      if (unit.count == 0) return;
      const int tiles = unit.tiles();
      for (int i = 0; i < tiles; ++i) {
        if (IsEdge<Shape>(unit, unit.last_tile - i)) Clean(unit, unit.last_tile - i);
        if (++index_ == Shape::kStages) index_ = 0;
      }
      __syncwarp();
      shared_.unit_empty[slot.index].ArriveAsWarp(lane_);
    }
  }

 private:
  __device__ void Clean(const Unit& unit, int tile) {
    shared_.value_landed[index_].Wait(landed_ >> index_ & 1);
    landed_ ^= 1u << index_;
    const int tile_key = tile * Shape::kKeys;
    ZeroKeys(0, unit.keys.begin - tile_key);
    ZeroKeys(unit.keys.end - tile_key, Shape::kKeys);
    FenceAsyncProxy();
    __syncwarp();
    shared_.value_full[index_].ArriveAsWarp(lane_);
  }

  // Rows [begin, end) of the tile; a row's pieces are permuted within the row only.
  __device__ void ZeroKeys(int begin, int end) {
    constexpr int kPieces = Shape::kSpan / 16;
    begin = max(begin, 0);
#pragma unroll 1
    for (int chunk = 0; chunk < Shape::kChunks; ++chunk) {
      int4* rows =
          reinterpret_cast<int4*>(shared_.values[index_] + chunk * Shape::kKeys * Shape::kSpan);
#pragma unroll 1
      for (int i = begin * kPieces + lane_; i < end * kPieces; i += kWarpSize) {
        rows[i] = make_int4(0, 0, 0, 0);
      }
    }
  }

  AttentionShared<Shape>& shared_;
  const int lane_;
  int index_ = 0;
  unsigned landed_ = 0;  // bit i: the parity of the next phase of stage i
};

}  // namespace eet
