// What an item of the decode step's attention begins with: its queries and the token's own key and
// value, as QKV's finishers have left them, normed and rotated where the model norms heads.
#pragma once

#include "ops/decode_step_split.cuh"
#include "ops/decode_step_strips.cuh"

namespace eet {

template <typename T, int kDim>
class QueryLoader {
 public:
  using Queries = AttentionQueries<kDim>;
  using Newest = NewKey<kDim>;

  __device__ explicit QueryLoader(StepBlock<T>& block)
      : block_(block),
        lane_(LaneId()),
        group_(int(block.sizes().heads) / int(block.sizes().kv_heads)) {}

  // Loads the queries, and the token's key and value where the item ends with them. One warp of
  // those that have the item appends them to the cache.
  __device__ void Load(int layer, const AttentionItem& item, bool appends, Queries& queries,
                       Newest& newest) {
    const bool last = item.keys.Contains(item.position);
    if (block_.NormsHeads()) {
      LoadNormed(layer, item, last, queries, newest);
    } else {
      LoadPlain(layer, item, last, queries, newest);
    }
    if (appends && last && item.first_head == 0) Append(layer, item, newest);
    block_.Trace(layer, Phase::kPartials, StepEvent::kStaged);
  }

 private:
  using HeadWords = uint32_t[Newest::kWords];  // lane, lane + 32, ... of a head

  static constexpr int kHeadWords = kDim / 2;

  // Waits for what load() brings, until is_there(), and for the token's key and value
  // where the item has them.
  template <typename Load, typename There>
  __device__ __forceinline__ void Await(int layer, const AttentionItem& item, bool last,
                                        Newest& newest, Load&& load, There&& is_there) {
    block_.AwaitReport(layer, Phase::kQkv);
    const uint32_t* key = Heads(layer, item) + group_ * kHeadWords + lane_;
    block_.watch.Until(
        [&] {
          load();
#pragma unroll
          for (int i = 0; i < Newest::kWords; ++i) {
            const bool has = last && Newest::HasWord(i, lane_);
            newest.key[i] = has ? LoadRelaxed(key + i * kWarpSize) : 0;
            newest.value[i] = has ? LoadRelaxed(key + kHeadWords + i * kWarpSize) : 0;
          }
          bool there = is_there();
#pragma unroll
          for (int i = 0; i < Newest::kWords; ++i) {
            there = there && IsThere(newest.key[i]) && IsThere(newest.value[i]);
          }
          return there;
        },
        StepBlock<T>::What(layer, Phase::kQkv));
    __syncwarp();
  }

  // Heads that are ready, as the products want them.
  __device__ __forceinline__ void LoadPlain(int layer, const AttentionItem& item, bool last,
                                            Queries& queries, Newest& newest) {
    const int head = lane_ / 4, column = lane_ % 4 * 2;
    const uint32_t* words = Heads(layer, item) + ((item.first_head + head) * kDim + column) / 2;
    const bool exists = head < item.heads;
    const auto load = [&] {
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        queries[i / 2][i % 2] = exists ? LoadRelaxed(words + i * 4) : 0;
      }
    };
    const auto is_there = [&] {
      bool there = true;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) there = there && IsThere(queries[i / 2][i % 2]);
      return there;
    };
    Await(layer, item, last, newest, load, is_there);
  }

  // Norms and rotates the queries, and the token's key where it is there. A head lies across the
  // warp's lanes meanwhile: as the products want them, most lanes would have no head.
  __device__ __forceinline__ void LoadNormed(int layer, const AttentionItem& item, bool last,
                                             Queries& queries, Newest& newest) {
    const DecodeStepArgs<T>& args = block_.args();
    HeadWords query_scale, key_scale;  // from far: under way before the queries are waited for
    LoadScale(args.q_norm, layer, query_scale);
    LoadScale(args.k_norm, layer, key_scale);
    HeadWords spread[kItemHeads];
    const uint32_t* words = Heads(layer, item) + item.first_head * kHeadWords + lane_;
    const auto load = [&] {
#pragma unroll
      for (int head = 0; head < kItemHeads; ++head) {
#pragma unroll
        for (int i = 0; i < Newest::kWords; ++i) {
          const bool has = head < item.heads && Newest::HasWord(i, lane_);
          spread[head][i] = has ? LoadRelaxed(words + head * kHeadWords + i * kWarpSize) : 0;
        }
      }
    };
    const auto is_there = [&] {
      bool there = true;
#pragma unroll
      for (int i = 0; i < kItemHeads * Newest::kWords; ++i) {
        there = there && IsThere(spread[i / Newest::kWords][i % Newest::kWords]);
      }
      return there;
    };
    Await(layer, item, last, newest, load, is_there);
#pragma unroll
    for (int head = 0; head < kItemHeads; ++head) {
      if (head >= item.heads) break;
      Transform(item, args.q_norm, query_scale, spread[head]);
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        const int word = 4 * i;  // and the next three
        const uint32_t given =
            __shfl_sync(kFullMask, spread[head][word / kWarpSize], word % kWarpSize + lane_ % 4);
        if (lane_ / 4 == head) queries[i / 2][i % 2] = given;
      }
    }
    if (last) Transform(item, args.k_norm, key_scale, newest.key);
  }

  // This lane's words of a norm of heads.
  __device__ __forceinline__ void LoadScale(const T* norm, int layer, HeadWords& scale) const {
    const uint32_t* words =
        reinterpret_cast<const uint32_t*>(norm) + int64_t{layer} * kHeadWords + lane_;
#pragma unroll
    for (int i = 0; i < Newest::kWords; ++i) {
      scale[i] = norm && Newest::HasWord(i, lane_) ? __ldg(words + i * kWarpSize) : 0;
    }
  }

  // Norms, where there is a norm, and rotates a head.
  __device__ __forceinline__ void Transform(const AttentionItem& item, const T* norm,
                                            const HeadWords& scale, HeadWords& head) const {
    const DecodeStepArgs<T>& args = block_.args();
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < Newest::kWords; ++i) squares += SquaresOf<T>(head[i]);
    squares = WarpReduce<Sum>(squares);
    const HeadTransform<T> transform = {
        .pairs = block_.Rotary(item.token),
        .rotary_dim = int(args.sizes.rotary_dim),
        .normed = norm != nullptr,
        .inverse = rsqrtf(squares / kDim + args.attention_norm.eps)};
#pragma unroll
    for (int i = 0; i < Newest::kWords; ++i) {
      if (Newest::HasWord(i, lane_)) {
        head[i] = transform(head[i], scale[i], 2 * (lane_ + i * kWarpSize));
      }
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

  // The token's query, key and value heads of the item's KV head.
  __device__ const uint32_t* Heads(int layer, const AttentionItem& item) const {
    const DecodeStepSizes& sizes = block_.sizes();
    return block_.Exchange(layer, 0) +
           (item.token * sizes.qkv_size() + int64_t{item.kv_head} * (group_ + 2) * kDim) / 2;
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

  StepBlock<T>& block_;
  const int lane_, group_;
};

}  // namespace eet
