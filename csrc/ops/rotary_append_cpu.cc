// Rotation and cache append on the host: tokens in parallel, heads one after the other.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "core/simd.h"
#include "ops/rms_norm.h"
#include "ops/rotary_append.h"

namespace eet {

constexpr int kMaxHeadDim = 256;

// Adjacent lanes exchanged, and each pair's first or second lane in both.
inline Floats SwapPairs(Floats x) { return __builtin_shuffle(x, LaneIndices() ^ 1); }
inline Floats FirstOfPairs(Floats x) { return __builtin_shuffle(x, LaneIndices() & ~1); }
inline Floats SecondOfPairs(Floats x) { return __builtin_shuffle(x, LaneIndices() | 1); }

// y = rms_norm(x) of one head, rounded to T as a norm of its own would be.
template <typename T>
static void NormalizeHead(const RotaryAppendArgs<T>& args, const T* x, const T* scale, T* y) {
  const float mean_square = Dot(x, x, args.head_dim) / float(args.head_dim);
  const float inv_rms = 1.0f / std::sqrt(mean_square + args.eps);
  ForEachVector(args.head_dim, [&](int64_t i, auto count) {
    Store(y + i, RmsNormElement(Load(x + i, count), Load(scale + i, count), inv_rms), count);
  });
}

// y = rotate(norm(x)) of one head; `pairs` is [rotary_dim / 2, 2], cosine and sine.
template <typename T>
static void TransformHead(const RotaryAppendArgs<T>& args, const T* x, const T* scale,
                          const float* pairs, T* y) {
  T normed[kMaxHeadDim];
  if (scale) {
    NormalizeHead(args, x, scale, normed);
    x = normed;
  }
  ForEachVector(args.rotary_dim, [&](int64_t i, auto count) {
    const Floats value = Load(x + i, count), turn = Load(pairs + i, count);
    const Floats crossed = SwapPairs(value) * SecondOfPairs(turn);
    Store(y + i, value * FirstOfPairs(turn) + (LaneIndices() % 2 == 0 ? -crossed : crossed), count);
  });
  std::copy(x + args.rotary_dim, x + args.head_dim, y + args.rotary_dim);
}

template <typename T>
static void TransformToken(const RotaryAppendArgs<T>& args, int64_t token) {
  const int64_t slot = CacheSlot(args, token);
  const float* pairs = args.rotary_table + token * args.rotary_dim;
  for (int64_t head = 0; head < args.kv_heads; ++head) {
    const T* x = args.qkv + (token * args.kv_heads + head) * (args.group + 2) * args.head_dim;
    T* q = args.q + (token * args.kv_heads + head) * args.group * args.head_dim;
    for (int64_t i = 0; i < args.group; ++i) {
      TransformHead(args, x + i * args.head_dim, args.q_norm, pairs, q + i * args.head_dim);
    }
    if (slot < 0) continue;
    const int64_t offset = (slot + head * args.page_size) * args.head_dim;
    TransformHead(args, x + args.group * args.head_dim, args.k_norm, pairs, args.k + offset);
    std::memcpy(args.v + offset, x + (args.group + 1) * args.head_dim, args.head_dim * sizeof(T));
  }
}

template <typename T>
void RotaryAppend(Stream stream, const RotaryAppendArgs<T>& args) {
  ParallelRanges(stream, args.tokens, 4, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) TransformToken(args, token);
  });
}

template void RotaryAppend(Stream, const RotaryAppendArgs<float>&);
template void RotaryAppend(Stream, const RotaryAppendArgs<bfloat16>&);
template void RotaryAppend(Stream, const RotaryAppendArgs<float16>&);

}  // namespace eet
