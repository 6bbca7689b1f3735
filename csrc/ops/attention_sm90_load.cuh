// The loader and the cleaner of attention on Hopper, a warp each.
#pragma once

#include "core/reduce.cuh"
#include "ops/attention_sm90_shape.cuh"

namespace eet {

// Keys of a tile are copied by boxes of `piece`, 2 * piece and 4 * piece keys of one page: a page's
// part of a tile in as few boxes as that allows. The piece divides page and tile; where there are
// no pages it is the tile.
constexpr int kBoxSizes = 3;

// How the copy engine finds queries, keys and values. Boxes are [rows, kChunk] of one head.
struct AttentionMaps {
  CUtensorMap q;                           // (head_dim, heads, tokens, 1)
  CUtensorMap k[kBoxSizes], v[kBoxSizes];  // (head_dim, kv_heads, key_len, batch), or
                                           // (head_dim, page_size, kv_heads, pages)
  int piece;
};

// Whether some keys of a tile are not the unit's.
template <class Shape>
__device__ bool IsEdge(const Unit& unit, int tile) {
  return tile * Shape::kKeys < unit.keys.begin || (tile + 1) * Shape::kKeys > unit.keys.end;
}

// Orders tiles in the sequence in which they are wanted: the keys of the next before the values of
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
      if (Lane() == 0) shared_.unit_empty[slot.index].Arrive();
    }
  }

 private:
  // Read anew each time: the loader has registers for little else than its place in the rings.
  static __device__ __forceinline__ int Lane() { return LaneId(); }

  __device__ void Load(const Unit& unit) {
    const int last = unit.last_tile, first = last + 1 - unit.tiles();
    for (int tile = last + 1; tile >= first; --tile) {
      if (tile > first) LoadKeys(unit, tile - 1);
      if (tile > last) {
        LoadQueries(unit);
      } else {
        LoadValues(unit, tile);
      }
    }
  }

  __device__ void LoadQueries(const Unit& unit) {
#pragma unroll 1
    for (int group = 0; group < Shape::kGroups; ++group) {
      shared_.query_empty[group].Wait(query_parity_ ^ 1);
      Barrier& full = shared_.query_full[group];
      if (Lane() == 0) full.ArriveExpecting(Shape::kGroupBytes);
      __syncwarp();
      if (Lane() < Shape::kChunks) {
        CopyBox(SharedAddress(shared_.queries[group]) + Lane() * kGroupRows * Shape::kSpan, maps_.q,
                Lane() * Shape::kChunk, unit.head, unit.token + group * kGroupRows, 0, full);
      }
    }
    query_parity_ ^= 1;
  }

  __device__ void LoadKeys(const Unit& unit, int tile) {
    const int at = keys_.index;
    LoadTile(maps_.k, unit, tile, SharedAddress(shared_.keys[at]), shared_.key_full[at],
             [&] { shared_.key_empty[at].Wait(keys_.parity ^ 1); });
    keys_.Advance();
  }

  __device__ void LoadValues(const Unit& unit, int tile) {
    const int at = values_.index;
    Barrier& full = IsEdge<Shape>(unit, tile) ? shared_.value_landed[at] : shared_.value_full[at];
    LoadTile(maps_.v, unit, tile, SharedAddress(shared_.values[at]), full,
             [&] { shared_.value_empty[at].Wait(values_.parity ^ 1); });
    values_.Advance();
  }

  // The unit's keys of a tile, rounded to whole pieces.
  struct Span {
    int tile_key, begin, end;
  };

  // A box of keys: the map of its size, -1 for no box, its first key in the tile and that one's
  // page.
  struct Box {
    int map, key, page;
  };

  // Orders what a tile has of the unit's keys, box by box, as soon as `wait` has returned. A lane
  // looks its first box up before that: the page table's memory is far.
  template <typename F>
  __device__ void LoadTile(const CUtensorMap* maps, const Unit& unit, int tile, uint32_t shared,
                           Barrier& full, const F& wait) {
    const int tile_key = tile * Shape::kKeys, piece = maps_.piece;
    const Span span{
        .tile_key = tile_key,
        .begin = max(unit.keys.begin - tile_key, 0) / piece * piece,
        .end = (min(unit.keys.end - tile_key, Shape::kKeys) + piece - 1) / piece * piece};
    Box box = FindBox(unit, span, Lane() / Shape::kChunks);
    wait();
    if (Lane() == 0) full.ArriveExpecting((span.end - span.begin) * Shape::kSpan * Shape::kChunks);
    __syncwarp();
#pragma unroll 1
    for (int i = Lane(); box.map >= 0;) {
      CopyKeys(maps[box.map], unit, span, box, i % Shape::kChunks, shared, full);
      i += kWarpSize;
      box = FindBox(unit, span, i / Shape::kChunks);
    }
  }

  __device__ Box FindBox(const Unit& unit, const Span& span, int which) const {
    if (!args_.page_table) return {.map = which == 0 ? 0 : -1, .key = 0, .page = unit.row};
    const uint32_t page_size = uint32_t(args_.page_size);
    int key = span.begin;
#pragma unroll 1
    for (;; --which) {
      const uint32_t page = uint32_t(span.tile_key + key) / page_size;
      const int page_end = int((page + 1) * page_size) - span.tile_key;
      const int left = min(page_end, span.end) - key;
      if (left <= 0) return {.map = -1};
      const int map = left >= 4 * maps_.piece ? 2 : left >= 2 * maps_.piece ? 1 : 0;
      if (which == 0) {
        const uint32_t at = uint32_t(unit.row) * uint32_t(args_.max_pages) + page;
        return {.map = map, .key = key, .page = args_.page_table[at]};
      }
      key += maps_.piece << map;
    }
  }

  __device__ void CopyKeys(const CUtensorMap& map, const Unit& unit, const Span& span,
                           const Box& box, int chunk, uint32_t shared, Barrier& full) const {
    const uint32_t to = shared + (chunk * Shape::kKeys + box.key) * Shape::kSpan;
    const int x = chunk * Shape::kChunk, key = span.tile_key + box.key;
    if (args_.page_table) {
      CopyBox(to, map, x, int(uint32_t(key) % uint32_t(args_.page_size)), unit.kv_head, box.page,
              full);
    } else {
      CopyBox(to, map, x, unit.kv_head, key, box.page, full);
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
      if (lane_ == 0) shared_.unit_empty[slot.index].Arrive();
    }
  }

 private:
  __device__ void Clean(const Unit& unit, int tile) {
    shared_.value_landed[index_].Wait(landed_ >> index_ & 1);
    landed_ ^= 1u << index_;
    const int tile_key = tile * Shape::kKeys;
    ZeroKeys(0, unit.keys.begin - tile_key);
    ZeroKeys(unit.keys.end - tile_key, Shape::kKeys);
    FenceSharedCopies();
    __syncwarp();
    if (lane_ == 0) shared_.value_full[index_].Arrive();
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
