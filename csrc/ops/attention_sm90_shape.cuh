// Attention on Hopper: how the work is cut, and what a block keeps in shared memory.
#pragma once

#include "core/ring.cuh"
#include "core/round.h"
#include "core/tma.cuh"
#include "core/wgmma.cuh"
#include "ops/attention.h"

namespace eet {

constexpr int kUnitSlots = 4;
constexpr int kMaxOrdered = 1024;  // blocks of tokens whose order is by their work

template <typename T_, int kDim_, int kGroups_, int kKeys_, int kStages_, int kChunk_,
          bool kBiased_ = false>
struct AttentionShape {
  using T = T_;
  static constexpr int kDim = kDim_, kGroups = kGroups_, kKeys = kKeys_, kStages = kStages_;
  static constexpr int kChunk = kChunk_;     // columns of a row that lie together in shared memory
  static constexpr bool kBiased = kBiased_;  // whether there is a soft cap or ALiBi

  static constexpr int kQueries = kGroups * kGroupRows;
  static constexpr int kThreads = (kGroups + 1) * kGroupThreads;
  static constexpr int kSpan = kChunk * 2, kChunks = CeilDiv(kDim, kChunk);
  static constexpr int kTileBytes = kKeys * kSpan * kChunks;
  static constexpr int kGroupBytes = kGroupRows * kSpan * kChunks;
  static constexpr int kFewRegisters = kGroups == 3 ? 32 : 56;
  static constexpr int kManyRegisters = kGroups == 3 ? 160 : 224;
  static_assert(kKeys % 16 == 0 && kDim % 16 == 0 && kChunk % 16 == 0);
};

struct Unit {
  int token;          // the first
  int count;          // tokens; 0 ends the work
  int row, position;  // of the first token
  int head, kv_head;
  int length;             // of the row
  KeyRange keys;          // that some token sees
  int last_tile;          // the first to be processed
  int lead, full, trail;  // tiles: full ones are seen by all tokens, those around them in part

  __device__ int tiles() const { return lead + full + trail; }
};

template <class Shape>
struct AttentionShared {
  alignas(1024) char keys[Shape::kStages][Shape::kTileBytes];
  char values[Shape::kStages][Shape::kTileBytes];
  char queries[Shape::kGroups][Shape::kGroupBytes];
  Barrier key_full[Shape::kStages], key_empty[Shape::kStages];
  Barrier value_full[Shape::kStages], value_empty[Shape::kStages];
  Barrier value_landed[Shape::kStages];  // of tiles that have to be cleaned
  Barrier query_full[Shape::kGroups], query_empty[Shape::kGroups];
  Barrier unit_full[kUnitSlots], unit_empty[kUnitSlots];
  Unit units[kUnitSlots];
  uint16_t order[kMaxOrdered];
};

template <class Shape>
__device__ void InitBarriers(AttentionShared<Shape>& shared) {
  constexpr int kWarps = Shape::kGroups * kGroupThreads / kWarpSize;
  for (int i = 0; i < Shape::kStages; ++i) {
    shared.key_full[i].InitForWarps(1);
    shared.value_full[i].InitForWarps(1);
    shared.value_landed[i].InitForWarps(1);
    shared.key_empty[i].InitForWarps(kWarps);
    shared.value_empty[i].InitForWarps(kWarps);
  }
  for (int i = 0; i < Shape::kGroups; ++i) {
    shared.query_full[i].InitForWarps(1);
    shared.query_empty[i].InitForWarps(kGroupThreads / kWarpSize);
  }
  for (int i = 0; i < kUnitSlots; ++i) {
    shared.unit_full[i].InitForWarps(1);
    shared.unit_empty[i].InitForWarps(kWarps + 2);  // and the loader, and the cleaner
  }
  FenceBarrierInit();
}

}  // namespace eet
