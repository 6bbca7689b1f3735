// Attention of many queries on Hopper. The kernel is explained in attention_sm90.cu.
#pragma once

#include <climits>

#include "ops/attention.h"

namespace eet {

// Whether the kernel takes such arguments, on a device of compute capability 9.0.
template <typename T>
bool AttentionSm90Takes(const AttentionArgs<T>& args) {
  const int64_t dim = args.head_dim;
  if (dim != 64 && dim != 80 && dim != 96 && dim != 128 && dim != 256) return false;
  if (args.tokens > INT_MAX / 2) return false;
  if (!args.page_table) return args.key_len > 0;
  return args.page_size % 8 == 0;  // a tile is made of pieces of pages, of 8 keys at least
}

// For 2-byte types.
template <typename T>
void AttentionSm90(Stream stream, const AttentionArgs<T>& args);

}  // namespace eet
