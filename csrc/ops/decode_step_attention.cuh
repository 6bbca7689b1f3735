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
#include "ops/decode_step_strips.cuh"

namespace eet {

template <typename T, int kDim>
class Attender {
 public:
  using Tile = CacheTile<T, kDim>;

  __device__ explicit Attender(StepBlock<T>& block)
      : block_(block),
        warp_(WarpId()),
        lane_(LaneId()),
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
      const AttentionItem of_lane = deal_.ItemOfLane(round);
      if (SharesTiles(of_lane)) {
        RoundOfStrips(layer, of_lane, place);
      } else {
        Round(layer, of_lane, place);
      }
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
  static constexpr int kStrips = Strips::kStrips, kTeams = kConsumers / kStrips;
  static_assert(kTeams * kStrips == kConsumers);
  static constexpr int kStripsBarrier = 3;  // after those of decode_step_begin.cuh

  // One item for each warp; their tiles alternate in the ring.
  __device__ void Round(int layer, const AttentionItem& of_lane, RingPlace& place) {
    const AttentionItem item = Own(of_lane, warp_);
    Queries queries = {};
    Newest newest = {};
    Output output;
    if (item.heads > 0) Begin(layer, item, true, queries, newest);
    int most = of_lane.tiles;
#pragma unroll
    for (int step = 1; step < kConsumers; step *= 2) {
      most = max(most, __shfl_xor_sync(kFullMask, most, step));
    }
    most = __shfl_sync(kFullMask, most, 0);
    for (int tile = 0; tile < most; ++tile) {
      for (int warp = 0; warp < kConsumers; ++warp) {
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
    if (item.heads > 0) Publish(layer, item, output);
  }

  // Whether the items of a round are so few, and of one tile at most, that a team of warps can take
  // each.
  __device__ bool SharesTiles(const AttentionItem& of_lane) const {
    if constexpr (!kShares) return false;
    const unsigned items = __ballot_sync(kFullMask, of_lane.heads > 0);
    return items >> kTeams == 0 && __ballot_sync(kFullMask, of_lane.tiles > 1) == 0;
  }

  // One item for each team, a strip of its tile for each warp. The first warp publishes.
  __device__ void RoundOfStrips(int layer, const AttentionItem& of_lane, RingPlace& place) {
    const int team = warp_ / kStrips, strip = warp_ % kStrips;
    const AttentionItem item = Own(of_lane, team);
    Queries queries = {};
    Newest newest = {};
    Output output;
    if (item.heads > 0) Begin(layer, item, strip == 0, queries, newest);
    for (int other = 0; other < kTeams; ++other) {
      if (__shfl_sync(kFullMask, of_lane.tiles, other) == 0) continue;
      char* data = block_.AwaitTile(place);
      if (other == team) {
        __syncwarp();
        InsertInto(item, data, item.first_key, strip, strip + 1, newest);
        strips_.Attend(data, strip, item.keys, item.first_key, queries, output);
        if (strip > 0) strips_.Leave(data, strip, output);
      }
      WaitAtBarrier<kConsumers * kWarpSize>(kStripsBarrier);
      if (other == team && strip == 0) {
        for (int i = 1; i < kStrips; ++i) output.Merge(strips_.Take(data, i));
      }
      block_.ReleaseTile(place, lane_);
    }
    if (item.heads > 0 && strip == 0) Publish(layer, item, output);
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

  // The token's query, key and value heads of the item's KV head.
  __device__ const uint32_t* Heads(int layer, const AttentionItem& item) const {
    const DecodeStepSizes& sizes = block_.sizes();
    return block_.Exchange(layer, 0) +
           (item.token * sizes.qkv_size() + int64_t{item.kv_head} * (group_ + 2) * kDim) / 2;
  }

  __device__ HeadTransform<T> Transform(const AttentionItem& item, const T* norm, int layer,
                                        float squares) const {
    const DecodeStepArgs<T>& args = block_.args();
    const int rotary_dim = int(args.sizes.rotary_dim);
    return {.scale = norm ? norm + int64_t{layer} * kDim : nullptr,
            .pairs = block_.Rotary(item.token),
            .rotary_dim = rotary_dim,
            .inverse = rsqrtf(squares / kDim + args.attention_norm.eps)};
  }

  // Loads the queries, and the token's key and value where the item ends with them. One warp of
  // those that have the item appends them to the cache.
  __device__ void Begin(int layer, const AttentionItem& item, bool appends, Queries& queries,
                        Newest& newest) {
    block_.AwaitReport(layer, Phase::kQkv);
    const int head = lane_ / 4, column = lane_ % 4 * 2;
    const uint32_t* heads = Heads(layer, item);
    const uint32_t* words = heads + ((item.first_head + head) * kDim + column) / 2;
    const uint32_t* key = heads + group_ * kHeadWords + lane_;
    const bool exists = head < item.heads, last = item.keys.Contains(item.position);
    const auto load = [&] {
      bool there = true;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        queries[i / 2][i % 2] = exists ? LoadRelaxed(words + i * 4) : 0;
      }
#pragma unroll
      for (int i = 0; i < Newest::kWords; ++i) {
        const bool has = last && Newest::HasWord(i, lane_);
        newest.key[i] = has ? LoadRelaxed(key + i * kWarpSize) : 0;
        newest.value[i] = has ? LoadRelaxed(key + kHeadWords + i * kWarpSize) : 0;
      }
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) there = there && IsThere(queries[i / 2][i % 2]);
#pragma unroll
      for (int i = 0; i < Newest::kWords; ++i) {
        there = there && IsThere(newest.key[i]) && IsThere(newest.value[i]);
      }
      return there;
    };
    block_.watch.Until(load, StepBlock<T>::What(layer, Phase::kQkv));
    __syncwarp();
    if (block_.NormsHeads()) NormHeads(layer, item, last, queries, newest);
    if (appends && last && item.first_head == 0) Append(layer, item, newest);
    block_.Trace(layer, Phase::kPartials, StepEvent::kStaged);
  }

  // Norms and rotates the queries, and the token's key where it is there.
  __device__ void NormHeads(int layer, const AttentionItem& item, bool last, Queries& queries,
                            Newest& newest) const {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) squares += SquaresOf<T>(queries[i / 2][i % 2]);
    squares += __shfl_xor_sync(kFullMask, squares, 1);
    squares += __shfl_xor_sync(kFullMask, squares, 2);
    const HeadTransform<T> of_query = Transform(item, block_.args().q_norm, layer, squares);
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      queries[i / 2][i % 2] = of_query(queries[i / 2][i % 2], 8 * i + lane_ % 4 * 2);
    }
    if (!last) return;
    squares = 0.0f;
#pragma unroll
    for (int i = 0; i < Newest::kWords; ++i) squares += SquaresOf<T>(newest.key[i]);
    squares = WarpReduce<Sum>(squares);
    const HeadTransform<T> of_key = Transform(item, block_.args().k_norm, layer, squares);
#pragma unroll
    for (int i = 0; i < Newest::kWords; ++i) {
      if (Newest::HasWord(i, lane_))
        newest.key[i] = of_key(newest.key[i], 2 * (lane_ + i * kWarpSize));
    }
  }

  // Appends the token's key and value to the cache for the steps to come.
  __device__ void Append(int layer, const AttentionItem& item, const Newest& newest) const {
    const int64_t slot = Slot(layer, item);
#pragma unroll
    for (int i = 0; i < Newest::kWords; ++i) {
      if (!Newest::HasWord(i, lane_)) break;
      const int column = 2 * (lane_ + i * kWarpSize);
      *reinterpret_cast<uint32_t*>(block_.args().k + slot + column) = newest.key[i];
      *reinterpret_cast<uint32_t*>(block_.args().v + slot + column) = newest.value[i];
    }
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

  // Where the token's key of this KV head goes in the cache.
  __device__ int64_t Slot(int layer, const AttentionItem& item) const {
    const DecodeStepArgs<T>& args = block_.args();
    const DecodeStepSizes& sizes = args.sizes;
    const int64_t page = block_.words.pages[item.token];
    return (((layer * sizes.pages + page) * sizes.kv_heads + item.kv_head) * sizes.page_size +
            item.position % int(sizes.page_size)) *
           kDim;
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
  const Strips strips_;
  ItemDeal<T> deal_;
  Merger<T, kDim> merger_;
  int group_;
};

}  // namespace eet
