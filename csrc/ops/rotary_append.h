// From the QKV projection to attention: per head an optional RMS norm and the rotation of adjacent
// pairs, x' = (x0 cos - x1 sin, x1 cos + x0 sin); q to a buffer of its own, k and v to the cache.
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "core/types.h"

namespace eet {

template <typename T>
struct RotaryAppendArgs {
  const T* qkv;               // [tokens, kv_heads, group + 2, head_dim]: group queries, key, value
  const T* q_norm;            // [head_dim] or nullptr
  const T* k_norm;            // [head_dim] or nullptr
  const float* rotary_table;  // [tokens, rotary_dim / 2, 2], cosine and sine; nullptr: no rotation
  const int32_t* page_table;  // [batch, max_pages]
  const int32_t* rows;        // [tokens], -1 for none
  const int32_t* positions;   // [tokens]
  T* q;                       // [tokens, kv_heads, group, head_dim]
  T* k;                       // [pages, kv_heads, page_size, head_dim]
  T* v;
  int64_t tokens, batch, kv_heads, group, head_dim, rotary_dim, pages, page_size, max_pages;
  float eps;
};

template <typename T>
void RotaryAppend(Stream stream, const RotaryAppendArgs<T>& args);

// Where the key and value of token t go: their row's slot in the layer's pages, or -1 for nowhere.
template <typename T>
EET_HOST_DEVICE int64_t CacheSlot(const RotaryAppendArgs<T>& args, int64_t token) {
  const int64_t row = args.rows[token], position = args.positions[token];
  if (row < 0 || row >= args.batch || position < 0) return -1;
  const int64_t entry = position / args.page_size;
  if (entry >= args.max_pages) return -1;
  const int64_t page = args.page_table[row * args.max_pages + entry];
  if (page <= 0 || page >= args.pages) return -1;
  return page * args.kv_heads * args.page_size + position % args.page_size;
}

}  // namespace eet
