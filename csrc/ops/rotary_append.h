// From the QKV projection to attention: per head an optional RMS norm and the rotation of adjacent
// pairs, x' = (x0 cos - x1 sin, x1 cos + x0 sin); q to a buffer of its own, k and v to the cache.
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "core/types.h"
#include "ops/kv_append.h"

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

}  // namespace eet
