// Attention of one query per row over its paged keys:  out = softmax(scores(q, k)) v
// The keys are split, so that many blocks stream one row. A split leaves its softmax state and the
// weighted sum of its values in the scratch memory; a second pass merges them in order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/round.h"
#include "core/stream.h"
#include "core/types.h"
#include "ops/scores.h"
#include "ops/softmax.h"

namespace eet {

template <typename T>
struct DecodeAttentionArgs {
  const T* q;                 // [tokens, heads, head_dim]
  const T* k;                 // [pages, kv_heads, page_size, head_dim], of one layer
  const T* v;                 // [pages, kv_heads, page_size, head_dim], of one layer
  const int32_t* page_table;  // [batch, max_pages]
  const int32_t* rows;        // [tokens], -1 for none
  const int32_t* positions;   // [tokens]; a token sees keys 0..position of its row
  const float* alibi_slopes;  // [heads] or nullptr
  T* out;                     // [tokens, heads, head_dim]
  float* scratch;             // [DecodeAttentionScratch(...)]
  int64_t tokens, batch, heads, kv_heads, head_dim, pages, page_size, max_pages;
  float scale, soft_cap;  // soft_cap 0: none
  int64_t window;         // 0: none
  // Rows, positions, the page table and all keys but those at `positions` were complete before the
  // preceding GPU kernel let this one start: they may be read before WaitForDependencies.
  bool cache_is_ready = false;
};

template <typename T>
void DecodeAttention(Stream stream, const DecodeAttentionArgs<T>& args);

constexpr int kSplitUnit = 64;  // splits start at multiples of this
constexpr int kMinSplit = 128;  // keys; the partial results of smaller splits would cost too much
constexpr int kMaxSplits = 64;  // of one row: enough to fill a GPU with the heads of a small model

// The keys of one query, split by themselves alone: neighbours change no bit of a row.
struct KeySplits {
  KeyRange keys;
  int first = 0, size = 0, count = 0;

  EET_HOST_DEVICE explicit KeySplits(KeyRange visible, int unit = kSplitUnit,
                                     int min_split = kMinSplit)
      : keys(visible) {
    if (keys.empty()) return;
    first = keys.begin / unit * unit;
    const int span = keys.end - first;
    const int units = kMaxSplits * unit;
    const int even = CeilDiv(span, units) * unit;
    size = even > min_split ? even : min_split;
    count = CeilDiv(span, size);
  }

  EET_HOST_DEVICE KeyRange operator[](int split) const {
    const int begin = first + split * size;
    return {std::max(begin, keys.begin), std::min(keys.end - begin, size) + begin};
  }
};

// The most splits that a row of at most `max_keys` keys has. Mirrored in _decode_attention.py.
constexpr int64_t MaxSplits(int64_t max_keys) {
  return std::min<int64_t>(kMaxSplits, CeilDiv(max_keys, kMinSplit));
}

// Floats of scratch memory. Mirrored in _decode_attention.py.
constexpr int64_t DecodeAttentionScratch(int64_t tokens, int64_t heads, int64_t head_dim,
                                         int64_t max_keys) {
  return tokens * heads * MaxSplits(max_keys) * (head_dim + 2);
}

// The splits of the keys that a token of `row` at `position` sees.
template <typename T>
EET_HOST_DEVICE KeySplits SplitsOf(const DecodeAttentionArgs<T>& args, int row, int position) {
  if (row < 0 || row >= args.batch) return KeySplits(KeyRange{});
  const int64_t max_keys = args.max_pages * args.page_size;
  return KeySplits(VisibleKeys(position, max_keys, args.window, /*causal=*/true));
}

template <typename T>
EET_HOST_DEVICE KeySplits SplitsOf(const DecodeAttentionArgs<T>& args, int64_t token) {
  return SplitsOf(args, args.rows[token], args.positions[token]);
}

// What a split leaves for the merge; those of one head follow each other.
struct Partial {
  SoftmaxState* state;
  float* sums;  // [head_dim], of weight * v
};

template <typename T>
EET_HOST_DEVICE Partial PartialOf(const DecodeAttentionArgs<T>& args, int64_t token, int64_t head,
                                  int split) {
  const int64_t splits = MaxSplits(args.max_pages * args.page_size);
  const int64_t index = (token * args.heads + head) * splits + split;
  float* states = args.scratch + args.tokens * args.heads * splits * args.head_dim;
  return {reinterpret_cast<SoftmaxState*>(states) + index, args.scratch + index * args.head_dim};
}

// Where key `key` of a row starts in k and v.
template <typename T>
EET_HOST_DEVICE int64_t KeyOffset(const DecodeAttentionArgs<T>& args, int64_t page, int64_t kv_head,
                                  int key) {
  const int64_t slot = uint32_t(key) % uint32_t(args.page_size);
  page = PageInside(page, args.pages);
  return ((page * args.kv_heads + kv_head) * args.page_size + slot) * args.head_dim;
}

template <typename T>
EET_HOST_DEVICE int PageOf(const DecodeAttentionArgs<T>& args, int64_t row, int key) {
  return args.page_table[row * args.max_pages + uint32_t(key) / uint32_t(args.page_size)];
}

}  // namespace eet
