// The planner of attention on Hopper: one warp that cuts tokens into units.
//
// Tokens are dealt to the blocks of the grid in stretches of kQueries; a stretch has the units that
// start in it. A unit ends where the row ends, positions jump, or the position is a multiple of
// kQueries, so that the diagonal cuts no more tiles than it must.
#pragma once

#include "core/reduce.cuh"
#include "ops/attention_sm90_shape.cuh"

namespace eet {

// Stretches of tokens: of all tokens where they are packed, of each row where they are not.
struct Stretches {
  int group_len, groups, per_group;

  template <typename T>
  __host__ __device__ Stretches(const AttentionArgs<T>& args, int queries)
      : group_len(int(args.rows ? args.tokens : args.query_len)),
        groups(args.rows ? 1 : int(args.batch)),
        per_group((group_len + queries - 1) / queries) {}

  // Heads of stretches.
  template <typename T>
  __host__ __device__ int Items(const AttentionArgs<T>& args) const {
    return per_group * groups * int(args.heads);
  }
};

template <typename T>
__device__ int RowOf(const AttentionArgs<T>& args, int token) {
  const int row = args.rows ? args.rows[token] : token / int(args.query_len);
  return row >= 0 && row < args.batch ? row : -1;
}

template <typename T>
__device__ int PositionOf(const AttentionArgs<T>& args, int token) {
  return args.positions ? args.positions[token] : token % int(args.query_len);
}

// Whether the order of stretches is looked for: where each block has but one item it does not
// matter.
template <typename T>
__device__ bool AreOrdered(const AttentionArgs<T>& args, const Stretches& stretches) {
  return args.rows && stretches.per_group <= kMaxOrdered && stretches.Items(args) > int(gridDim.x);
}

// Orders the stretches of packed tokens by the keys that their last tokens see, most first. By all
// threads; `work` is scratch memory for kMaxOrdered.
template <class Shape>
__device__ void OrderStretches(const AttentionArgs<typename Shape::T>& args, int* work,
                               uint16_t* order) {
  const Stretches stretches(args, Shape::kQueries);
  if (!AreOrdered(args, stretches)) return;
  const int count = stretches.per_group;
  for (int i = threadIdx.x; i < count; i += Shape::kThreads) {
    const Query last = QueryOf(args, min(args.tokens, int64_t{i + 1} * Shape::kQueries) - 1);
    work[i] = last.keys.end - last.keys.begin;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += Shape::kThreads) {
    int rank = 0;
#pragma unroll 8
    for (int j = 0; j < count; ++j) rank += work[j] > work[i] || (work[j] == work[i] && j > i);
    order[rank] = i;
  }
  __syncthreads();
}

template <class Shape>
class Planner {
 public:
  using T = typename Shape::T;

  __device__ Planner(const AttentionArgs<T>& args, AttentionShared<Shape>& shared)
      : args_(args), shared_(shared), stretches_(args, Shape::kQueries) {}

  // Items are heads of a stretch, heads first, then groups, then stretches from the most work
  // down. They are dealt forth and back, so that each block gets long and short ones.
  __device__ void Run() {
    const int items = stretches_.Items(args_);
#pragma unroll 1
    for (int first = 0, turn = 0; first < items; first += gridDim.x, turn ^= 1) {
      const int item = first + (turn ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
      if (item < items) PlanItem(item);
    }
    PlanEnd();
  }

 private:
  __device__ void PlanItem(int item) {
    const int heads = int(args_.heads), head = item % heads;
    const int in_order = item / heads / stretches_.groups, group = item / heads % stretches_.groups;
    const int stretch = AreOrdered(args_, stretches_) ? shared_.order[in_order]
                                                      : stretches_.per_group - 1 - in_order;
    PlanStretch(group * stretches_.group_len, stretch * Shape::kQueries, head);
  }

  // The units that start among kQueries tokens from `first` of the group that starts at `base`. The
  // last one may reach further.
  __device__ void PlanStretch(int base, int first, int head) {
    // Tokens that are looked at together: most units end among them.
    constexpr int kAhead = Shape::kQueries + kWarpSize;
    Place before = PlaceOf(base, max(first - 1, 0));
    int open = -1;
#pragma unroll 1
    for (int begin = 0; begin < 2 * Shape::kQueries; begin += kAhead) {
      const unsigned starts = FindStarts<kAhead>(base, first + begin, before);
#pragma unroll 1
      for (int w = 0; w < kAhead / kWarpSize; ++w) {
        unsigned word = __ballot_sync(kFullMask, starts >> w & 1);
#pragma unroll 1
        for (; word; word &= word - 1) {
          const int start = begin + w * kWarpSize + __ffs(word) - 1;
          if (open >= 0) PlanUnit(base + first + open, start - open, head);
          if (start >= Shape::kQueries || first + start >= stretches_.group_len) return;
          open = start;
        }
      }
    }
  }

  struct Place {
    int row, position;
  };

  // The place of token i of the group that starts at `base`. Where tokens are not packed a group is
  // one row.
  __device__ __forceinline__ Place PlaceOf(int base, int i) const {
    return {args_.rows ? RowOf(args_, base + i) : 0,
            args_.positions ? args_.positions[base + i] : i};
  }

  // Bit w: whether a unit starts at this lane's token of the word w of `kTokens` tokens from
  // `begin` on. All loads are under way together: one after the other they took longer than the
  // attention of a short prompt. `before` is the place of the token before, and is left as that of
  // the last.
  template <int kTokens>
  __device__ __forceinline__ unsigned FindStarts(int base, int begin, Place& before) const {
    constexpr int kWords = kTokens / kWarpSize, kLast = kWarpSize - 1;
    const int lane = threadIdx.x % kWarpSize;
    Place places[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      places[w] = PlaceOf(base, min(begin + w * kWarpSize + lane, stretches_.group_len - 1));
    }
    unsigned starts = 0;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const Place& here = places[w];
      const Place neighbour{__shfl_up_sync(kFullMask, here.row, 1),
                            __shfl_up_sync(kFullMask, here.position, 1)};
      const int i = begin + w * kWarpSize + lane;
      if (StartsUnit(i, here, lane == 0 ? before : neighbour)) starts |= 1u << w;
      before = {__shfl_sync(kFullMask, here.row, kLast),
                __shfl_sync(kFullMask, here.position, kLast)};
    }
    return starts;
  }

  // The end of the group counts as a start, and what is behind it.
  __device__ __forceinline__ bool StartsUnit(int i, const Place& here, const Place& before) const {
    if (i == 0 || i >= stretches_.group_len || here.row != before.row) return true;
    if (here.row < 0) return i % Shape::kQueries == 0;
    return here.position % Shape::kQueries == 0 || here.position - 1 != before.position;
  }

  __device__ void PlanUnit(int token, int count, int head) {
    Unit& unit = Next();
    if (threadIdx.x % kWarpSize == 0) {
      unit.token = token;
      unit.count = count;
      unit.head = head;
      unit.kv_head = head / int(args_.heads / args_.kv_heads);
      unit.row = RowOf(args_, token);
      unit.position = PositionOf(args_, token);
      unit.lead = unit.full = unit.trail = 0;
      if (unit.row >= 0) CountTiles(unit);
    }
    Publish();
  }

  __device__ void CountTiles(Unit& unit) const {
    constexpr int kKeys = Shape::kKeys;
    int64_t length = args_.page_table ? args_.max_pages * args_.page_size : args_.key_len;
    if (args_.lengths) length = min(length, int64_t{args_.lengths[unit.row]});
    const auto visible = [&](int position) {
      return VisibleKeys(position, length, args_.window, args_.causal);
    };
    const KeyRange a = visible(unit.position), b = visible(unit.position + unit.count - 1);
    KeyRange keys = Union(a, b);
    if (!a.empty() && b.empty()) keys.end = int(length);  // the window moves past the last key
    unit.length = int(length);
    unit.keys = keys;
    if (keys.empty()) return;
    const int end_tile = (keys.end + kKeys - 1) / kKeys;
    const int tiles = end_tile - keys.begin / kKeys;
    const int full_begin = (max(a.begin, b.begin) + kKeys - 1) / kKeys;
    const int full_end = min(a.end, b.end) / kKeys;
    const int full = max(full_end - full_begin, 0), lead = full > 0 ? end_tile - full_end : tiles;
    unit.last_tile = end_tile - 1;
    unit.lead = lead;
    unit.full = full;
    unit.trail = tiles - lead - full;
  }

  __device__ void PlanEnd() {
    Unit& unit = Next();
    if (threadIdx.x % kWarpSize == 0) unit.count = 0;
    Publish();
  }

  // Waits until the next slot's unit has been processed.
  __device__ Unit& Next() {
    shared_.unit_empty[slot_.index].Wait(slot_.parity ^ 1);
    return shared_.units[slot_.index];
  }

  __device__ void Publish() {
    shared_.unit_full[slot_.index].ArriveAsWarp(threadIdx.x % kWarpSize);
    slot_.Advance();
  }

  const AttentionArgs<T>& args_;
  AttentionShared<Shape>& shared_;
  const Stretches stretches_;
  RingSlot<kUnitSlots> slot_;
};

}  // namespace eet
