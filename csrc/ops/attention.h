// Attention of many queries:  out = softmax(scores(q, k)) v  over the keys that each query sees.
// In tiles: no score matrix is ever in memory. A query that sees no key gets zeros.
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "core/types.h"
#include "ops/scores.h"

namespace eet {

template <typename T>
struct AttentionArgs {
  const T* q;                 // [tokens, heads, head_dim]
  const T* k;                 // one layer's [pages, kv_heads, page_size, head_dim] when paged,
                              // [batch, key_len, kv_heads, head_dim] when dense
  const T* v;                 // like k
  const int32_t* page_table;  // [batch, max_pages], nullptr when dense
  const int32_t* rows;        // [tokens], -1 for none; nullptr: token t is in row t / query_len
  const int32_t* positions;   // [tokens] or nullptr: token t is at t % query_len
  const int32_t* lengths;     // [batch], keys of each row when dense, or nullptr: key_len
  const float* alibi_slopes;  // [heads] or nullptr
  T* out;                     // [tokens, heads, head_dim]
  int64_t tokens, batch, query_len, key_len, heads, kv_heads, head_dim;
  int64_t pages, page_size, max_pages;  // 0 when dense
  float scale, soft_cap;                // soft_cap 0: none
  int64_t window;                       // 0: none
  bool causal;
  // Rows, positions, lengths and page table were complete before the preceding GPU kernel let this
  // one start, so they may be read before WaitForDependencies (core/launch.cuh).
  bool tokens_are_ready = false;
};

template <typename T>
void Attention(Stream stream, const AttentionArgs<T>& args);

// Tiles of keys start at multiples of their size, wherever the query is. This is the size on the
// CPU and of mma.sync; other kernels have their own. A tile whose keys a query does not see changes
// no bit of its result, so neither do the query's neighbours nor chunking.
constexpr int kTileKeys = 64;

// A query: the row whose keys it sees, its position, and the keys; none for a row out of range.
struct Query {
  int row, position;
  KeyRange keys;
};

template <typename T>
EET_HOST_DEVICE Query QueryOf(const AttentionArgs<T>& args, int64_t token) {
  const int row = args.rows ? args.rows[token] : int(token / args.query_len);
  const int position = args.positions ? args.positions[token] : int(token % args.query_len);
  if (row < 0 || row >= args.batch) return {.row = -1, .position = 0, .keys = {}};
  int64_t length = args.page_table ? args.max_pages * args.page_size : args.key_len;
  if (args.lengths && args.lengths[row] < length) length = args.lengths[row];
  return {.row = row,
          .position = position,
          .keys = VisibleKeys(position, length, args.window, args.causal)};
}

// Where key `key` of a row and KV head starts in k and v.
template <typename T>
EET_HOST_DEVICE int64_t KeyOffset(const AttentionArgs<T>& args, int row, int64_t kv_head, int key) {
  if (!args.page_table) {
    return ((row * args.key_len + key) * args.kv_heads + kv_head) * args.head_dim;
  }
  const uint32_t page_size = uint32_t(args.page_size);
  const int64_t found = args.page_table[row * args.max_pages + uint32_t(key) / page_size];
  const int64_t page = PageInside(found, args.pages);
  return ((page * args.kv_heads + kv_head) * page_size + uint32_t(key) % page_size) * args.head_dim;
}

}  // namespace eet
