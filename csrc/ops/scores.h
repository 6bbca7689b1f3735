// Attention scores in units of log 2, and which keys a query sees:
//   score = log2(e) * (cap(scale * q.k) + slope * (key - position)),  cap(s) = c * tanh(s / c)
#pragma once

#include <cmath>
#include <cstdint>

#include "core/types.h"
#include "ops/softmax.h"

namespace eet {

// The score of a product q.k without its ALiBi term; soft_cap 0: none.
EET_HOST_DEVICE float Score(float product, float scale, float soft_cap) {
  if (soft_cap == 0.0f) return product * (scale * kLog2E);
  return soft_cap * kLog2E * tanhf(product * (scale / soft_cap));
}

EET_HOST_DEVICE float AlibiTerm(float slope, int key, int position) {
  return slope * kLog2E * float(key - position);
}

// Keys [begin, end).
struct KeyRange {
  int begin, end;

  EET_HOST_DEVICE bool empty() const { return begin >= end; }
  EET_HOST_DEVICE bool Contains(int key) const { return key >= begin && key < end; }
};

// The smallest range that holds both.
EET_HOST_DEVICE KeyRange Union(KeyRange a, KeyRange b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {a.begin < b.begin ? a.begin : b.begin, a.end > b.end ? a.end : b.end};
}

// The keys that the query at `position` sees of `length`; window 0: none.
EET_HOST_DEVICE KeyRange VisibleKeys(int position, int64_t length, int64_t window, bool causal) {
  const int64_t last = int64_t{position} + 1;
  const int64_t end = causal && last < length ? last : length;
  const int64_t begin = window > 0 && last > window ? last - window : 0;
  if (begin >= end) return {};
  return {int(begin), int(end)};
}

// The page nearest to `page` that exists: a table's entries may be anything.
EET_HOST_DEVICE int64_t PageInside(int64_t page, int64_t pages) {
  return page < 0 ? 0 : page < pages ? page : pages - 1;
}

}  // namespace eet
