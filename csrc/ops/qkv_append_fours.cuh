// How linear for few rows on Hopper makes queries, keys and values of its sums, without norms of
// heads: those need whole ones.
#pragma once

#include "ops/linear_decode_sm90_outputs.cuh"
#include "ops/rotary_append.h"

namespace eet {

template <typename T>
class QkvFours {
 public:
  struct Args {
    const T* bias;  // [out] or nullptr
    RotaryAppendArgs<T> append;
  };
  static constexpr bool kAppends = true;

  __device__ explicit QkvFours(const Args& args) : args_(args), append_(args.append) {}

  // Where a token goes in the cache; -1 for none.
  __device__ int64_t SlotOf(int64_t token) const { return CacheSlot(append_, token); }

  // Stores four outputs of a token that has that slot; the first, and heads, are multiples of four.
  __device__ __forceinline__ void Store(int64_t token, int64_t slot, int64_t out,
                                        float (&sums)[4]) const {
    AddBias(args_.bias, out, sums);
    Neighbours<T, 4> four;  // rounded to T, as a product of its own would be
#pragma unroll
    for (int i = 0; i < 4; ++i) four.values[i] = T(sums[i]);
    const unsigned dim = unsigned(append_.head_dim), parts = unsigned(append_.group) + 2;
    const unsigned head = unsigned(out) / dim, col = unsigned(out) % dim;
    const unsigned kv_head = head / parts, part = head % parts;
    if (part <= append_.group) Rotate(token, col, four);
    T* to = Head(token, slot, kv_head, part);
    if (to) *reinterpret_cast<Neighbours<T, 4>*>(to + col) = four;
  }

 private:
  __device__ __forceinline__ void Rotate(int64_t token, int col, Neighbours<T, 4>& four) const {
    const float* table = append_.rotary_table + token * append_.rotary_dim + col;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      if (col + i >= append_.rotary_dim) return;
      const auto [cosine, sine] = *reinterpret_cast<const float2*>(table + i);
      const float first = float(four.values[i]), second = float(four.values[i + 1]);
      four.values[i] = T(first * cosine - second * sine);
      four.values[i + 1] = T(second * cosine + first * sine);
    }
  }

  // nullptr where it goes nowhere.
  __device__ __forceinline__ T* Head(int64_t token, int64_t slot, int64_t kv_head,
                                     int64_t part) const {
    const int64_t dim = append_.head_dim;
    if (part < append_.group) {
      return append_.q + ((token * append_.kv_heads + kv_head) * append_.group + part) * dim;
    }
    if (slot < 0) return nullptr;
    T* cache = part == append_.group ? append_.k : append_.v;
    return cache + (slot + kv_head * append_.page_size) * dim;
  }

  const Args& args_;
  const RotaryAppendArgs<T>& append_;
};

}  // namespace eet
