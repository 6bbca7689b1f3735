// Attention of the decode step. A warp takes one item, streams its keys and values as tiles of the
// ring, and publishes either the attended heads or, where the row has several splits, its part of
// them, which a second round merges.
//
// A warp takes a microsecond for a strip of sixteen keys. So where a block has few items of a tile
// each, warps share a tile, a strip for each. An item of one tile has the same bits either way: its
// strips' outputs are found apart, and merged in order. Not for heads of more than 64: their tiles
// have two strips at most, and two outputs more registers than there are.
//
// The token itself is in no tile yet: its key and value are put into the tile where they belong,
// and into the cache for the steps to come.
#pragma once

#include "ops/decode_step_merge.cuh"
#include "ops/decode_step_queries.cuh"

namespace eet {

template <typename T, int kDim>
class Attender {
 public:
  using Tile = CacheTile<T, kDim>;

  __device__ explicit Attender(StepBlock<T>& block)
      : block_(block),
        warp_(WarpId()),
        lane_(LaneId()),
        loader_(block),
        strips_(block.args().scale, lane_),
        deal_(block, Tile::kKeys),
        merger_(block) {
    group_ = int(block.sizes().heads) / int(block.sizes().kv_heads);
  }

  // All of a layer's attention that this warp has.
  __device__ void Run(int layer, RingPlace& place) {
    block_.Trace(layer, Phase::kPartials, StepEvent::kBegan);
    deal_.Deal(layer);
    for (int round = 0; round < deal_.rounds(); ++round) {
      Round(layer, deal_.ItemOfLane(round), place);
    }
    merger_.Run(layer, deal_);
  }

 private:
  using Strips = StripAttender<T, kDim>;
  using Output = typename Strips::Output;
  using Queries = typename Strips::Queries;
  using Newest = NewKey<kDim>;

  static constexpr int kHeadWords = kDim / 2;
  static constexpr bool kShares = kDim <= 64;
  static constexpr int kStrips = Strips::kStrips, kTeams = kConsumerWarps / kStrips;
  static_assert(kTeams * kStrips == kConsumerWarps);
  static constexpr int kStripsBarrier = 3;  // after those of decode_step_begin.cuh

  // One item at most for each warp, or for each team of warps: a strip of its tile for each warp,
  // and the first one publishes.
  __device__ void Round(int layer, const AttentionItem& of_lane, RingPlace& place) {
    const bool shares = SharesTiles(of_lane);
    const AttentionItem item = Own(of_lane, shares ? warp_ / kStrips : warp_);
    const bool leads = !shares || warp_ % kStrips == 0;
    Queries queries = {};
    Newest newest = {};
    Output output;
    if (item.heads > 0) loader_.Load(layer, item, leads, queries, newest);
    if (shares) {
      TakeStrips(item, of_lane, queries, newest, output, place);
    } else {
      TakeTiles(item, of_lane, queries, newest, output, place);
    }
    if (item.heads > 0 && leads) Publish(layer, item, output);
  }

  // Whether the items of a round are so few, and of one tile at most, that a team of warps can take
  // each.
  __device__ bool SharesTiles(const AttentionItem& of_lane) const {
    if constexpr (!kShares) return false;
    const unsigned items = __ballot_sync(kFullMask, of_lane.heads > 0);
    return items >> kTeams == 0 && __ballot_sync(kFullMask, of_lane.tiles > 1) == 0;
  }

  // The warps' tiles alternate in the ring.
  __device__ void TakeTiles(const AttentionItem& item, const AttentionItem& of_lane,
                            const Queries& queries, const Newest& newest, Output& output,
                            RingPlace& place) {
    int most = of_lane.tiles;
#pragma unroll
    for (int step = 1; step < kConsumerWarps; step *= 2) {
      most = max(most, __shfl_xor_sync(kFullMask, most, step));
    }
    most = __shfl_sync(kFullMask, most, 0);
    for (int tile = 0; tile < most; ++tile) {
      for (int warp = 0; warp < kConsumerWarps; ++warp) {
        if (tile >= __shfl_sync(kFullMask, of_lane.tiles, warp)) continue;
        // The others' tiles too: a warp more than a turn of the ring away would lose its place.
        char* data = block_.AwaitTile(place);
        if (warp == warp_) {
          __syncwarp();
          Attend(item, data, item.first_key + tile * Tile::kKeys, queries, newest, output);
        }
        block_.ReleaseTile(place, lane_);
      }
    }
  }

  // The teams' tiles: the first warp of a team takes in what the others have left in the tile.
  __device__ void TakeStrips(const AttentionItem& item, const AttentionItem& of_lane,
                             const Queries& queries, const Newest& newest, Output& output,
                             RingPlace& place) {
    const int team = warp_ / kStrips, strip = warp_ % kStrips;
    for (int other = 0; other < kTeams; ++other) {
      if (__shfl_sync(kFullMask, of_lane.tiles, other) == 0) continue;
      char* data = block_.AwaitTile(place);
      if (other == team) {
        __syncwarp();
        InsertInto(item, data, item.first_key, strip, strip + 1, newest);
        strips_.Attend(data, strip, item.keys, item.first_key, queries, output);
        if (strip > 0) strips_.Leave(data, strip, output);
      }
      WaitAtBarrier<kConsumerWarps * kWarpSize>(kStripsBarrier);
      if (other == team && strip == 0) {
        for (int i = 1; i < kStrips; ++i) output.Merge(strips_.Take(data, i));
      }
      block_.ReleaseTile(place, lane_);
    }
  }

  // The item that a lane has found.
  __device__ AttentionItem Own(const AttentionItem& of_lane, int lane) const {
    AttentionItem item;
    const auto own = [&](int value) { return __shfl_sync(kFullMask, value, lane); };
    item.token = own(of_lane.token);
    item.kv_head = own(of_lane.kv_head);
    item.first_head = own(of_lane.first_head);
    item.heads = own(of_lane.heads);
    item.split = own(of_lane.split);
    item.splits = own(of_lane.splits);
    item.position = own(of_lane.position);
    item.keys = {own(of_lane.keys.begin), own(of_lane.keys.end)};
    item.first_key = own(of_lane.first_key);
    item.tiles = own(of_lane.tiles);
    return item;
  }

  // Puts the token into the strips from `begin` on before `end`, if it is in the tile.
  __device__ void InsertInto(const AttentionItem& item, char* data, int tile_key, int begin,
                             int end, const Newest& newest) const {
    const int row = item.position - tile_key;
    if (row < 0 || row >= Tile::kKeys) return;
    strips_.Insert(data, row, begin * Strips::kStripKeys, end * Strips::kStripKeys, newest);
  }

  // Strip by strip in a loop: unrolled, the code would take longer to fetch than to run.
  __device__ void Attend(const AttentionItem& item, char* data, int tile_key,
                         const Queries& queries, const Newest& newest, Output& output) const {
    InsertInto(item, data, tile_key, 0, kStrips, newest);
    const bool apart = kShares && item.tiles == 1;
#pragma unroll 1
    for (int strip = 0; strip < kStrips; ++strip) {
      const Output before = output;
      if (apart) output = {};
      strips_.Attend(data, strip, item.keys, tile_key, queries, output);
      if (apart && strip > 0) {
        const Output found = output;
        output = before;
        output.Merge(found);
      }
    }
  }

  // Leaves the item's result: of head lane / 4 in every lane, after the transposition.
  __device__ void Publish(int layer, const AttentionItem& item, Output& output) {
    block_.Trace(layer, Phase::kPartials, StepEvent::kMultiplied);
    float factors[2], log_sums[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      SoftmaxState& softmax = output.softmax[j];
#pragma unroll
      for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
        softmax.sum += __shfl_xor_sync(kFullMask, softmax.sum, lanes);
      }
      factors[j] = softmax.Normalizer();
      log_sums[j] = softmax.max + __log2f(softmax.sum);
    }
    const DecodeStepExchange& exchange = block_.params.exchange;
    const int64_t first_head =
        item.token * block_.sizes().heads + item.kv_head * group_ + item.first_head;
    const bool whole = item.splits == 1;
    const int64_t stride = whole ? 1 : exchange.splits, at = whole ? 0 : item.split;
    uint32_t* out = block_.Exchange(layer, whole ? exchange.attended : exchange.partials) +
                    ((first_head + lane_ / 4) * stride + at) * kHeadWords;
    const bool exists = lane_ / 4 < item.heads;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const float* sums = &output.sums[i / 2][i % 2 * 2];
      const uint32_t word = TransposeMatrix(
          PackPair(sums[0] * factors[0], sums[1] * factors[1], std::type_identity<T>{}));
      if (exists) StoreRelaxed(out + i * 4 + lane_ % 4, word);
    }
    if (!whole && lane_ < 4) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int head = lane_ * 2 + j;
        if (head < item.heads) {
          StoreRelaxed(
              block_.Exchange(layer, exchange.log_sums) + (first_head + head) * stride + at,
              __float_as_uint(log_sums[j]));
        }
      }
    }
    __syncwarp();
    if (lane_ == 0) CountRelaxed(block_.Counter(layer, Phase::kPartials));
    block_.Trace(layer, Phase::kPartials, StepEvent::kFinished);
  }

  StepBlock<T>& block_;
  const int warp_, lane_;
  QueryLoader<T, kDim> loader_;
  const Strips strips_;
  ItemDeal<T> deal_;
  Merger<T, kDim> merger_;
  int group_;
};

}  // namespace eet
