// Attention of the decode step. A warp takes one item, streams its keys and values as tiles of the
// ring, and publishes either the attended heads or, where the row has several splits, its part of
// them, which a second round merges.
//
// The token itself is in no tile yet: its key and value are put into the tile where they belong,
// and into the cache for the steps to come.
#pragma once

#include "ops/decode_step_heads.cuh"
#include "ops/decode_step_merge.cuh"

namespace eet {

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
    block_.Trace(layer, Phase::kPartials, StepEvent::kBegan);
    deal_.Deal(layer);
    for (int round = 0; round < deal_.rounds(); ++round) {
      Round(layer, deal_.ItemOfLane(round), place);
    }
    merger_.Run(layer, deal_);
  }

 private:
  static constexpr int kHeadWords = kDim / 2;
  static constexpr int kFragments = kDim / 16;

  // The second operand of the scores: head lane / 4 of the item.
  using Queries = uint32_t[kFragments][2];

  // The token's own key and value: words lane, lane + 32, ... of them.
  struct NewKey {
    static constexpr int kWords = (kHeadWords + kWarpSize - 1) / kWarpSize;
    uint32_t key[kWords], value[kWords];
  };

  __device__ bool HasWord(int i) const {
    return kHeadWords % kWarpSize == 0 || lane_ + i * kWarpSize < kHeadWords;
  }

  // Element [n][2 * i + j] is of column 16 * n + 8 * i + lane / 4 and head lane % 4 * 2 + j.
  struct Output {
    float sums[kFragments][4] = {};
    SoftmaxState softmax[2];  // sums over this lane's keys only
  };

  // One item for each warp; their tiles alternate in the ring.
  __device__ void Round(int layer, const AttentionItem& of_lane, RingPlace& place) {
    const AttentionItem item = Own(of_lane);
    Queries queries = {};
    NewKey newest = {};
    Output output;
    if (item.heads > 0) Begin(layer, item, queries, newest);
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

  // The item that lane `warp` has found.
  __device__ AttentionItem Own(const AttentionItem& of_lane) const {
    AttentionItem item;
    const auto own = [&](int value) { return __shfl_sync(kFullMask, value, warp_); };
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
  __device__ void Begin(int layer, const AttentionItem& item, Queries& queries, NewKey& newest) {
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
      for (int i = 0; i < NewKey::kWords; ++i) {
        const bool has = last && HasWord(i);
        newest.key[i] = has ? LoadRelaxed(key + i * kWarpSize) : 0;
        newest.value[i] = has ? LoadRelaxed(key + kHeadWords + i * kWarpSize) : 0;
      }
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) there = there && IsThere(queries[i / 2][i % 2]);
#pragma unroll
      for (int i = 0; i < NewKey::kWords; ++i) {
        there = there && IsThere(newest.key[i]) && IsThere(newest.value[i]);
      }
      return there;
    };
    block_.watch.Until(load, StepBlock<T>::What(layer, Phase::kQkv));
    __syncwarp();
    if (block_.NormsHeads()) NormHeads(layer, item, last, queries, newest);
    if (last && item.first_head == 0) Append(layer, item, newest);
    block_.Trace(layer, Phase::kPartials, StepEvent::kStaged);
  }

  // Norms and rotates the queries, and the token's key where it is there.
  __device__ void NormHeads(int layer, const AttentionItem& item, bool last, Queries& queries,
                            NewKey& newest) const {
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
    for (int i = 0; i < NewKey::kWords; ++i) squares += SquaresOf<T>(newest.key[i]);
    squares = WarpReduce<Sum>(squares);
    const HeadTransform<T> of_key = Transform(item, block_.args().k_norm, layer, squares);
#pragma unroll
    for (int i = 0; i < NewKey::kWords; ++i) {
      if (HasWord(i)) newest.key[i] = of_key(newest.key[i], 2 * (lane_ + i * kWarpSize));
    }
  }

  // Appends the token's key and value to the cache for the steps to come.
  __device__ void Append(int layer, const AttentionItem& item, const NewKey& newest) const {
    const int64_t slot = Slot(layer, item);
#pragma unroll
    for (int i = 0; i < NewKey::kWords; ++i) {
      if (!HasWord(i)) break;
      const int column = 2 * (lane_ + i * kWarpSize);
      *reinterpret_cast<uint32_t*>(block_.args().k + slot + column) = newest.key[i];
      *reinterpret_cast<uint32_t*>(block_.args().v + slot + column) = newest.value[i];
    }
  }

  // Strip by strip in a loop: unrolled, the code would take longer to fetch than to run.
  __device__ void Attend(const AttentionItem& item, char* data, int first_key,
                         const Queries& queries, const NewKey& newest, Output& output) {
    const Tile keys{data}, values{data + Tile::kHalf};
    const int row = item.position - first_key;
    if (row >= 0 && row < Tile::kKeys) Insert(keys, values, row, newest);
#pragma unroll 1
    for (int key = 0; key < Tile::kKeys; key += Tile::kStrip) {
      StripScores scores = {};
      Score(keys, key, queries, scores);
      ToWeights(item.keys, first_key + key, scores, output);
      AddValues(values, key, scores, output);
    }
  }

  // Puts the token's key and value into row `row` of a tile. The rows behind, which nobody has
  // written, become zeros: zero times whatever is there might be NaN.
  __device__ void Insert(const Tile& keys, const Tile& values, int row,
                         const NewKey& newest) const {
#pragma unroll
    for (int i = 0; i < NewKey::kWords; ++i) {
      if (!HasWord(i)) break;
      const int column = 2 * (lane_ + i * kWarpSize);
      reinterpret_cast<uint32_t*>(keys.Piece(row, column / 8))[column % 8 / 2] = newest.key[i];
      reinterpret_cast<uint32_t*>(values.Piece(row, column / 8))[column % 8 / 2] = newest.value[i];
    }
    constexpr int kPieces = kDim / 8;
    for (int i = (row + 1) * kPieces + lane_; i < Tile::kKeys * kPieces; i += kWarpSize) {
      *reinterpret_cast<uint4*>(values.Piece(i / kPieces, i % kPieces)) = {};
    }
    FenceSharedCopies();  // the copy engine writes here next
    __syncwarp();
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

  // Of a strip of keys: element 2 * i + j is of key 8 * i + lane / 4 and head lane % 4 * 2 + j.
  using StripScores = float[4];

  // In two sums, so that products need not wait for each other.
  __device__ void Score(const Tile& keys, int key, const Queries& queries,
                        StripScores& scores) const {
    StripScores more = {};
#pragma unroll
    for (int n = 0; n < kFragments; ++n) {
      uint32_t a[4];
      LoadMatrices(a, keys.Piece(key + lane_ % 16, 2 * n + lane_ / 16));
      MmaM16N8K16(n % 2 ? more : scores, a, queries[n], std::type_identity<T>{});
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[i] += more[i];
  }

  // From products to weights, and all before in proportion.
  __device__ void ToWeights(const KeyRange& visible, int first_key, StripScores& scores,
                            Output& output) const {
    float factors[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      SoftmaxState& softmax = output.softmax[j];
      float largest = -INFINITY;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[2 * i + j];
        const bool seen = visible.Contains(first_key + 8 * i + lane_ / 4);
        score = seen ? eet::Score(score, block_.args().scale, 0.0f) : -INFINITY;
        largest = fmaxf(largest, score);
      }
#pragma unroll
      for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, lanes));
      }
      factors[j] = softmax.Raise(largest);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[2 * i + j];
        score = softmax.Weight(score);
        softmax.sum += score;
      }
    }
#pragma unroll
    for (int n = 0; n < kFragments; ++n) {
#pragma unroll
      for (int c = 0; c < 4; ++c) output.sums[n][c] *= factors[c % 2];
    }
  }

  __device__ void AddValues(const Tile& values, int key, const StripScores& weights,
                            Output& output) const {
    constexpr std::type_identity<T> kType;
    const uint32_t b[2] = {TransposeMatrix(PackPair(weights[0], weights[1], kType)),
                           TransposeMatrix(PackPair(weights[2], weights[3], kType))};
#pragma unroll
    for (int n = 0; n < kFragments; ++n) {
      uint32_t a[4];
      LoadMatricesTransposed(a,
                             values.Piece(key + lane_ / 16 * 8 + lane_ % 8, 2 * n + lane_ / 8 % 2));
      MmaM16N8K16(output.sums[n], a, b, kType);
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
  ItemDeal<T> deal_;
  Merger<T, kDim> merger_;
  int group_;
};

}  // namespace eet
