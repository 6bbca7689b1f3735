// Decode attention on the host: splits of the keys in parallel, then their merge.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "core/parallel.h"
#include "core/simd.h"
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

// A row of T as floats, in `buffer` unless it is of floats already.
template <typename T>
static const float* Widen(const T* row, int64_t size, float* buffer) {
  if constexpr (std::is_same_v<T, float>) return row;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) Store(buffer + i, Load(row + i));
  for (; i < size; ++i) buffer[i] = float(row[i]);
  return buffer;
}

// sums = sums * factor
static void Multiply(float* sums, float factor, int64_t size) {
  for (int64_t i = 0; i < size; ++i) sums[i] *= factor;
}

// sums += weight * row
static void AddWeighted(float* sums, float weight, const float* row, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) Store(sums + i, Load(sums + i) + weight * Load(row + i));
  for (; i < size; ++i) sums[i] += weight * row[i];
}

using Scores = float[kHeadsAtOnce][kChunkKeys];

// Scores of no more than kChunkKeys keys; minus infinity for the rest of the chunk.
template <typename T>
static void ScoreKeys(const SplitHeads<T>& at, KeyRange keys,
                      const float (&q)[kHeadsAtOnce][kMaxHeadDim], Scores& scores) {
  const DecodeAttentionArgs<T>& args = at.args;
  const int position = args.positions[at.token];
  for (float (&head)[kChunkKeys] : scores) std::fill_n(head, kChunkKeys, -INFINITY);
  float buffer[kMaxHeadDim];
  for (int key = keys.begin; key < keys.end; ++key) {
    const float* row = Widen(at.Row(args.k, key), args.head_dim, buffer);
    for (int head = 0; head < at.heads; ++head) {
      float& score = scores[head][key - keys.begin];
      score = Score(Dot(q[head], row, args.head_dim), args.scale, args.soft_cap);
      if (args.alibi_slopes) {
        score += AlibiTerm(args.alibi_slopes[at.first_head + head], key, position);
      }
    }
  }
}

// From scores to weights, and all before in proportion.
static void WeighKeys(const Partial& partial, float (&scores)[kChunkKeys], int64_t head_dim) {
  Floats largest = Load(scores);
  for (int i = kLanes; i < kChunkKeys; i += kLanes) largest = Max(largest, Load(scores + i));
  const float factor = partial.state->Raise(ReduceMax(largest));
  if (factor != 1.0f) Multiply(partial.sums, factor, head_dim);
  Floats sum{};
  for (int i = 0; i < kChunkKeys; i += kLanes) {
    const Floats weights = Exp2(Load(scores + i) - partial.state->max);
    Store(scores + i, weights);
    sum += weights;
  }
  partial.state->sum += ReduceSum(sum);
}

template <typename T>
static void AddValues(const SplitHeads<T>& at, KeyRange keys, const Scores& weights,
                      const Partial (&partials)[kHeadsAtOnce]) {
  float buffer[kMaxHeadDim];
  for (int key = keys.begin; key < keys.end; ++key) {
    const float* row = Widen(at.Row(at.args.v, key), at.args.head_dim, buffer);
    for (int head = 0; head < at.heads; ++head) {
      AddWeighted(partials[head].sums, weights[head][key - keys.begin], row, at.args.head_dim);
    }
  }
}

template <typename T>
static void AttendSplit(const SplitHeads<T>& at) {
  const int64_t head_dim = at.args.head_dim;
  float queries[kHeadsAtOnce][kMaxHeadDim];
  Partial partials[kHeadsAtOnce];
  for (int head = 0; head < at.heads; ++head) {
    const int64_t query_head = at.first_head + head;
    const T* q = at.args.q + (at.token * at.args.heads + query_head) * head_dim;
    for (int64_t i = 0; i < head_dim; ++i) queries[head][i] = float(q[i]);
    partials[head] = PartialOf(at.args, at.token, query_head, at.split);
    *partials[head].state = SoftmaxState();
    std::fill_n(partials[head].sums, head_dim, 0.0f);
  }
  for (int begin = at.keys.begin; begin < at.keys.end; begin += kChunkKeys) {
    const KeyRange keys{begin, begin + std::min(kChunkKeys, at.keys.end - begin)};
    Scores scores;
    ScoreKeys(at, keys, queries, scores);
    for (int head = 0; head < at.heads; ++head) WeighKeys(partials[head], scores[head], head_dim);
    AddValues(at, keys, scores, partials);
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
    Multiply(sums, before, args.head_dim);
    AddWeighted(sums, factor, partial.sums, args.head_dim);
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
