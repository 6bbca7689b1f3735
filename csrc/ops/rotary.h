// Rotary position embedding: the pair (x0, x1) of each head, turned by its token's angle:
//   y = (x0 cos - x1 sin, x1 cos + x0 sin)
// Pair i is (x[i], x[i + pairs]), or (x[2 i], x[2 i + 1]) when interleaved; the rest is copied.
#pragma once

#include <cstdint>

#include "core/stream.h"
#include "core/types.h"

namespace eet {

template <typename T>
struct RotaryArgs {
  const T* x;          // [tokens, heads, head_dim]
  const float* table;  // [tokens, pairs, 2], cosine and sine
  T* y;                // [tokens, heads, head_dim]
  int64_t tokens, heads, head_dim, pairs;
  bool interleaved;
};

template <typename T>
void Rotary(Stream stream, const RotaryArgs<T>& args);

// Turns pair i of one head; `table` is [pairs, 2].
template <typename T>
EET_HOST_DEVICE void RotatePair(const T* x, const float* table, T* y, int64_t i, int64_t pairs,
                                bool interleaved) {
  const int64_t first = interleaved ? 2 * i : i, second = interleaved ? first + 1 : i + pairs;
  const float x0 = float(x[first]), x1 = float(x[second]);
  const float cosine = table[2 * i], sine = table[2 * i + 1];
  y[first] = T(x0 * cosine - x1 * sine);
  y[second] = T(x1 * cosine + x0 * sine);
}

}  // namespace eet
