// Writes the keys and values of new tokens into the pages of their rows:
//   k[page_table[row, position / page_size], :, position % page_size] = k_new[token], v alike
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "core/types.h"

namespace eet {

template <typename T>
struct KvAppendArgs {
  const T* k_new;             // [tokens, kv_heads, head_dim]
  const T* v_new;             // [tokens, kv_heads, head_dim]
  T* k;                       // [pages, kv_heads, page_size, head_dim], of one layer
  T* v;                       // [pages, kv_heads, page_size, head_dim], of one layer
  const int32_t* page_table;  // [batch, max_pages]
  const int32_t* rows;        // [tokens], -1 for none
  const int32_t* positions;   // [tokens]
  int64_t tokens, batch, kv_heads, head_dim, pages, page_size, max_pages;
};

template <typename T>
void KvAppend(Stream stream, const KvAppendArgs<T>& args);

// The index of head 0 of a token among the [pages, kv_heads, page_size] places of a layer, or -1 if
// it has none. Page 0 stands for pages that are not assigned: writing it would race. Args tells
// where tokens go, as KvAppendArgs does.
template <typename Args>
EET_HOST_DEVICE int64_t CacheSlot(const Args& args, int32_t row, int32_t position) {
  if (row < 0 || row >= args.batch || position < 0) return -1;
  if (position >= args.max_pages * args.page_size) return -1;
  const uint32_t page_size = uint32_t(args.page_size);  // division of 64 bits takes the GPU long
  const int64_t place = row * args.max_pages + uint32_t(position) / page_size;
  const int64_t page = args.page_table[place];
  if (page <= 0 || page >= args.pages) return -1;
  return page * args.kv_heads * args.page_size + uint32_t(position) % page_size;
}

template <typename Args>
EET_HOST_DEVICE int64_t CacheSlot(const Args& args, int64_t token) {
  return CacheSlot(args, args.rows[token], args.positions[token]);
}

}  // namespace eet
