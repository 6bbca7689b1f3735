// Decode attention on the host: splits of the keys in parallel, then their merge.
#include <algorithm>
#include <cmath>

#include "core/dot_tile.h"
#include "core/multiply_add.h"
#include "core/parallel.h"
#include "core/round.h"
#include "core/simd_exp.h"
#include "ops/decode_attention.h"

namespace eet {

constexpr int kHeadsAtOnce = 8;  // query heads for which a key is loaded once
constexpr int kChunkKeys = 64;   // keys whose scores share a maximum
constexpr int kMaxHeadDim = 256;

// Query heads of one token that share a KV head, over one split of the keys.
template <typename T>
struct SplitHeads {
  const DecodeAttentionArgs<T>& args;
  int64_t token, kv_head, first_head;
  int heads, split;
  KeyRange keys;

  const T* Row(const T* cache, int key) const {
    const int64_t row = args.rows[token];
    return cache + KeyOffset(args, PageOf(args, row, key), kv_head, key);
  }
};

// What is known of the heads after some of the keys.
struct HeadStates {
  SoftmaxState softmax[kHeadsAtOnce];
  float sums[kHeadsAtOnce][kMaxHeadDim] = {};  // of weight * v
};

using Scores = float[kHeadsAtOnce][kChunkKeys];

// Scores of no more than kChunkKeys keys; minus infinity for the rest of the chunk.
template <typename T>
static void ScoreKeys(const SplitHeads<T>& at, KeyRange keys,
                      const Factor<T> (&q)[kHeadsAtOnce][kMaxHeadDim], Scores& scores) {
  const DecodeAttentionArgs<T>& args = at.args;
  const int count = keys.end - keys.begin;
  for (int first = 0; first < count; first += kTileOuts) {
    FourRows<T> four;
    for (int i = 0; i < kTileOuts; ++i) {
      four.rows[i] = at.Row(args.k, std::min(keys.begin + first + i, keys.end - 1));
    }
    DotAllRows(four, args.head_dim, at.heads, q[0], kMaxHeadDim, &scores[0][first], kChunkKeys,
               /*ahead=*/0);
  }
  for (int head = 0; head < at.heads; ++head) {
    for (int i = 0; i < count; ++i) {
      scores[head][i] = Score(scores[head][i], args.scale, args.soft_cap);
    }
    if (args.alibi_slopes) {
      const float slope = args.alibi_slopes[at.first_head + head];
      const int position = args.positions[at.token];
      for (int i = 0; i < count; ++i) scores[head][i] += AlibiTerm(slope, keys.begin + i, position);
    }
    std::fill(scores[head] + count, scores[head] + kChunkKeys, -INFINITY);
  }
}

// From scores to weights, and all before in proportion.
static void WeighKeys(SoftmaxState& softmax, float (&scores)[kChunkKeys],
                      float (&sums)[kMaxHeadDim]) {
  Floats largest = Load(scores);
  for (int i = kLanes; i < kChunkKeys; i += kLanes) largest = Max(largest, Load(scores + i));
  const float factor = softmax.Raise(ReduceMax(largest));
  if (factor != 1.0f) {
    for (float& sum : sums) sum *= factor;
  }
  Floats sum{};
  for (int i = 0; i < kChunkKeys; i += kLanes) {
    const Floats weights = Exp2(Load(scores + i) - softmax.max);
    Store(scores + i, weights);
    sum += weights;
  }
  softmax.sum += ReduceSum(sum);
}

template <typename T>
static void AddValues(const SplitHeads<T>& at, KeyRange keys, const Scores& weights,
                      HeadStates& states) {
  const int64_t dim = RoundUp(at.args.head_dim, kLanes);
  float values[kChunkKeys * kMaxHeadDim];
  for (int key = keys.begin; key < keys.end; ++key) {
    const T* row = at.Row(at.args.v, key);
    float* value = values + (key - keys.begin) * dim;
    ForEachVector(at.args.head_dim,
                  [&](int64_t i, auto count) { Store(value + i, Load(row + i, count)); });
  }
  MultiplyAdd(weights[0], kChunkKeys, values, dim, states.sums[0], kMaxHeadDim, at.heads,
              keys.end - keys.begin, dim);
}

template <typename T>
static void AttendSplit(const SplitHeads<T>& at) {
  const int64_t head_dim = at.args.head_dim;
  Factor<T> queries[kHeadsAtOnce][kMaxHeadDim];
  HeadStates states;
  for (int head = 0; head < at.heads; ++head) {
    const T* q = at.args.q + (at.token * at.args.heads + at.first_head + head) * head_dim;
    CopyFactors(q, head_dim, Factors<Factor<T>>::kSize, queries[head]);
  }
  for (int begin = at.keys.begin; begin < at.keys.end; begin += kChunkKeys) {
    const KeyRange keys{begin, begin + std::min(kChunkKeys, at.keys.end - begin)};
    Scores scores;
    ScoreKeys(at, keys, queries, scores);
    for (int head = 0; head < at.heads; ++head) {
      WeighKeys(states.softmax[head], scores[head], states.sums[head]);
    }
    AddValues(at, keys, scores, states);
  }
  for (int head = 0; head < at.heads; ++head) {
    const Partial partial = PartialOf(at.args, at.token, at.first_head + head, at.split);
    *partial.state = states.softmax[head];
    std::copy_n(states.sums[head], head_dim, partial.sums);
  }
}

template <typename T>
static void AttendKvHead(const DecodeAttentionArgs<T>& args, int64_t token, int64_t kv_head,
                         int split) {
  const KeySplits splits = SplitsOf(args, token);
  if (split >= splits.count) return;
  const int64_t group = args.heads / args.kv_heads;
  for (int64_t i = 0; i < group; i += kHeadsAtOnce) {
    AttendSplit(SplitHeads<T>{.args = args,
                              .token = token,
                              .kv_head = kv_head,
                              .first_head = kv_head * group + i,
                              .heads = int(std::min<int64_t>(kHeadsAtOnce, group - i)),
                              .split = split,
                              .keys = splits[split]});
  }
}

template <typename T>
static void MergeSplits(const DecodeAttentionArgs<T>& args, int64_t token, int64_t head) {
  const int count = SplitsOf(args, token).count;
  float sums[kMaxHeadDim] = {};
  SoftmaxState state;
  for (int split = 0; split < count; ++split) {
    const Partial partial = PartialOf(args, token, head, split);
    const auto [before, factor] = state.Merge(*partial.state);
    for (int64_t i = 0; i < args.head_dim; ++i) {
      sums[i] = sums[i] * before + factor * partial.sums[i];
    }
  }
  T* out = args.out + (token * args.heads + head) * args.head_dim;
  const float normalizer = state.Normalizer();
  for (int64_t i = 0; i < args.head_dim; ++i) out[i] = T(sums[i] * normalizer);
}

template <typename T>
void DecodeAttention(Stream stream, const DecodeAttentionArgs<T>& args) {
  const int64_t splits = MaxSplits(args.max_pages * args.page_size);
  ParallelFor(stream, args.tokens * args.kv_heads * splits, [&](int64_t block) {
    const int64_t head = block / splits;
    AttendKvHead(args, head / args.kv_heads, head % args.kv_heads, int(block % splits));
  });
  ParallelRanges(stream, args.tokens * args.heads, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) MergeSplits(args, i / args.heads, i % args.heads);
  });
}

template void DecodeAttention(Stream, const DecodeAttentionArgs<float>&);
template void DecodeAttention(Stream, const DecodeAttentionArgs<bfloat16>&);
template void DecodeAttention(Stream, const DecodeAttentionArgs<float16>&);

}  // namespace eet
