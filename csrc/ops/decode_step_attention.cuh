// Attention of the decode step. A team of warps takes one item, streams its keys and values as
// tiles of the ring, and publishes either the attended heads or, where the row has several splits,
// its part of them, which a second round merges.
//
// The token itself is in no tile yet: its key and value are put into the tile where they belong,
// and into the cache for the steps to come.
#pragma once

#include "ops/decode_step_merge.cuh"
#include "ops/decode_step_strip.cuh"
#include "ops/rotary_append.h"

namespace eet {

// What becomes of two adjacent elements of a query or a key: norm, then rotation, rounded as by
// rotary_append.
template <typename T>
struct HeadTransform {
  const T* scale;      // [head_dim] or nullptr
  const float* pairs;  // [rotary_dim], cosines and sines of the token's position
  int rotary_dim;
  float inverse;  // of the root of the head's mean square

  __device__ uint32_t operator()(uint32_t word, int column) const {
    constexpr std::type_identity<T> kType;
    const T* elements = reinterpret_cast<const T*>(&word);
    float x0 = float(elements[0]), x1 = float(elements[1]);
    if (scale) {
      x0 = float(T(x0 * inverse * float(scale[column])));
      x1 = float(T(x1 * inverse * float(scale[column + 1])));
    }
    if (column < rotary_dim) {
      const float2 at = *reinterpret_cast<const float2*>(pairs + column);
      const float rotated = x0 * at.x - x1 * at.y;
      x1 = x1 * at.x + x0 * at.y;
      x0 = rotated;
    }
    return PackPair(x0, x1, kType);
  }
};

template <typename T>
__device__ __forceinline__ float SquaresOf(uint32_t word) {
  const T* elements = reinterpret_cast<const T*>(&word);
  return float(elements[0]) * float(elements[0]) + float(elements[1]) * float(elements[1]);
}

template <typename T, int kDim>
class Attender {
 public:
  using Tile = CacheTile<T, kDim>;

  __device__ explicit Attender(StepBlock<T>& block)
      : block_(block), warp_(WarpId()), lane_(LaneId()), deal_(block, Tile::kKeys), merger_(block) {
    group_ = int(block.sizes().heads) / int(block.sizes().kv_heads);
  }

  // All of a layer's attention that this warp has.
  __device__ void Run(int layer, RingPlace& place) {
    deal_.Deal(layer);
    rank_ = warp_ % deal_.team();
    for (int round = 0; round < deal_.rounds(); ++round) {
      Round(layer, deal_.ItemOfLane(round), place);
    }
    merger_.Run(layer, deal_);
  }

 private:
  static constexpr int kHeadWords = kDim / 2;

  // Of the strips rank, rank + team, ... of every tile.
  using Strips = Strip<T, kDim>[Tile::kStrips];

  // One item for each team; their tiles alternate in the ring.
  __device__ void Round(int layer, const AttentionItem& of_lane, RingPlace& place) {
    const int teams = deal_.teams(), mine = warp_ / deal_.team();
    const AttentionItem item = Own(of_lane, mine);
    Queries<kDim> queries = {};
    NewKey<kDim> newest = {};
    Strips strips;
    if (item.heads > 0) Begin(layer, item, queries, newest);
    int most = of_lane.tiles;
#pragma unroll
    for (int step = 1; step < kConsumers; step *= 2) {
      most = max(most, __shfl_xor_sync(kFullMask, most, step));
    }
    most = __shfl_sync(kFullMask, most, 0);
    for (int tile = 0; tile < most; ++tile) {
      for (int team = 0; team < teams; ++team) {
        if (tile >= __shfl_sync(kFullMask, of_lane.tiles, team)) continue;
        // The others' tiles too: a warp more than a turn of the ring away would lose its place.
        char* data = block_.AwaitTile(place);
        __syncwarp();
        if (team == mine) {
          Attend(item, data, item.first_key + tile * Tile::kKeys, queries, newest, strips);
          if (tile == item.tiles - 1) Publish(layer, item, data, strips);
        }
        block_.ReleaseTile(place, lane_);
      }
    }
    if (item.heads > 0 && item.tiles == 0) PublishNothing(layer, item);
  }

  // The item that lane `team` has found.
  __device__ AttentionItem Own(const AttentionItem& of_lane, int team) const {
    AttentionItem item;
    const auto own = [&](int value) { return __shfl_sync(kFullMask, value, team); };
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

  // Loads the queries, and the token's key and value where the item ends with them.
  __device__ void Begin(int layer, const AttentionItem& item, Queries<kDim>& queries,
                        NewKey<kDim>& newest) {
    block_.AwaitHint(layer, Phase::kQkv);
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
      for (int i = 0; i < NewKey<kDim>::kWords; ++i) {
        newest.key[i] = last ? LoadRelaxed(key + i * kWarpSize) : 0;
        newest.value[i] = last ? LoadRelaxed(key + kHeadWords + i * kWarpSize) : 0;
      }
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) there = there && IsThere(queries[i / 2][i % 2]);
#pragma unroll
      for (int i = 0; i < NewKey<kDim>::kWords; ++i) {
        there = there && IsThere(newest.key[i]) && IsThere(newest.value[i]);
      }
      return there;
    };
    block_.watch.Until(load, StepBlock<T>::What(layer, Phase::kQkv));
    __syncwarp();
    if (block_.NormsHeads()) NormHeads(layer, item, last, queries, newest);
    if (last && item.first_head == 0 && rank_ == 0) Append(layer, item, newest);
  }

  // Norms and rotates the queries, and the token's key where it is there.
  __device__ void NormHeads(int layer, const AttentionItem& item, bool last, Queries<kDim>& queries,
                            NewKey<kDim>& newest) const {
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
    for (int i = 0; i < NewKey<kDim>::kWords; ++i) squares += SquaresOf<T>(newest.key[i]);
    squares = WarpReduce<Sum>(squares);
    const HeadTransform<T> of_key = Transform(item, block_.args().k_norm, layer, squares);
#pragma unroll
    for (int i = 0; i < NewKey<kDim>::kWords; ++i) {
      newest.key[i] = of_key(newest.key[i], 2 * (lane_ + i * kWarpSize));
    }
  }

  // Appends the token's key and value to the cache for the steps to come.
  __device__ void Append(int layer, const AttentionItem& item, const NewKey<kDim>& newest) const {
    const int64_t slot = Slot(layer, item);
#pragma unroll
    for (int i = 0; i < NewKey<kDim>::kWords; ++i) {
      const int column = 2 * (lane_ + i * kWarpSize);
      *reinterpret_cast<uint32_t*>(block_.args().k + slot + column) = newest.key[i];
      *reinterpret_cast<uint32_t*>(block_.args().v + slot + column) = newest.value[i];
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

  // Takes in this warp's strips of a tile.
  __device__ void Attend(const AttentionItem& item, char* data, int first_key,
                         const Queries<kDim>& queries, const NewKey<kDim>& newest,
                         Strips& strips) const {
    const int own = item.position - first_key;
#pragma unroll
    for (int i = 0; i < Tile::kStrips; ++i) {
      const int row = (rank_ + i * deal_.team()) * kStripKeys;
      if (row >= Tile::kKeys || first_key + row >= item.keys.end) break;
      if (own >= row && own < row + kStripKeys) {
        Strip<T, kDim>::Insert(data, row, own, newest, lane_);
      }
      strips[i].Attend(data, first_key, row, item.keys, block_.args().scale, queries, lane_);
    }
  }

  // The team has taken in its item's last tile, whose memory is free now: leaves the result.
  __device__ void Publish(int layer, const AttentionItem& item, char* data,
                          const Strips& strips) const {
    const int team = deal_.team();
    SyncTeam();
#pragma unroll
    for (int i = 0; i < Tile::kStrips; ++i) {
      if (i * team < Tile::kStrips) strips[i].Write(data, rank_ + i * team, lane_);
    }
    SyncTeam();
    const Outputs out = OutputsOf(layer, item);
    for (int i = rank_ * kWarpSize + lane_; i < item.heads * kHeadWords; i += team * kWarpSize) {
      const int head = i / kHeadWords, word = i % kHeadWords;
      const auto [values, log_sum] = Strip<T, kDim>::Combine(data, head, 2 * word);
      StoreRelaxed(out.words + head * out.stride * kHeadWords + word,
                   PackPair(values.x, values.y, std::type_identity<T>{}));
      if (out.log_sums && word == 0) {
        StoreRelaxed(out.log_sums + head * out.stride, __float_as_uint(log_sum));
      }
    }
    // The copy engine writes here next.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    Count(layer);
  }

  // Of a row without a token: zeros.
  __device__ void PublishNothing(int layer, const AttentionItem& item) const {
    const Outputs out = OutputsOf(layer, item);
    for (int i = rank_ * kWarpSize + lane_; i < item.heads * kHeadWords;
         i += deal_.team() * kWarpSize) {
      StoreRelaxed(out.words + i, 0);
    }
    Count(layer);
  }

  // Where an item's heads go: to the attended ones where it is its row's only split.
  struct Outputs {
    uint32_t *words, *log_sums;  // of the item's first head; log_sums may be nullptr
    int stride;                  // in heads, from one head to the next
  };

  __device__ Outputs OutputsOf(int layer, const AttentionItem& item) const {
    const DecodeStepExchange& exchange = block_.params.exchange;
    const int64_t first_head =
        item.token * block_.sizes().heads + item.kv_head * group_ + item.first_head;
    if (item.splits == 1) {
      return {block_.Exchange(layer, exchange.attended) + first_head * kHeadWords, nullptr, 1};
    }
    const int64_t at = first_head * exchange.splits + item.split;
    return {block_.Exchange(layer, exchange.partials) + at * kHeadWords,
            block_.Exchange(layer, exchange.log_sums) + at, int(exchange.splits)};
  }

  __device__ void Count(int layer) const {
    __syncwarp();
    if (lane_ == 0) CountRelaxed(block_.Counter(layer, Phase::kPartials));
  }

  __device__ void SyncTeam() const {
    const int team = deal_.team();
    if (team == 1) return __syncwarp();
    asm volatile("bar.sync %0, %1;" ::"r"(kFirstTeamBarrier + warp_ / team), "r"(team * kWarpSize)
                 : "memory");
  }

  StepBlock<T>& block_;
  const int warp_, lane_;
  ItemDeal<T> deal_;
  Merger<T, kDim> merger_;
  int group_, rank_ = 0;  // rank: in the team
};

}  // namespace eet
