// Rotation and cache append on the host: tokens in parallel, heads one after the other.
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "core/simd.h"
#include "ops/rotary_append.h"

namespace eet {

// y = rotate(norm(x)) of one head; `pairs` is [rotary_dim / 2, 2].
template <typename T>
static void TransformHead(const RotaryAppendArgs<T>& args, const T* x, const T* scale,
                          const float* pairs, T* y) {
  float inv_rms = 1.0f;
  if (scale) inv_rms = 1.0f / std::sqrt(Dot(x, x, args.head_dim) / float(args.head_dim) + args.eps);
  const auto element = [&](int64_t i) {
    // Rounded to T, as a norm of its own would be.
    return scale ? float(T(float(x[i]) * inv_rms * float(scale[i]))) : float(x[i]);
  };
  for (int64_t i = 0; i < args.rotary_dim; i += 2) {
    const float x0 = element(i), x1 = element(i + 1), cosine = pairs[i], sine = pairs[i + 1];
    y[i] = T(x0 * cosine - x1 * sine);
    y[i + 1] = T(x1 * cosine + x0 * sine);
  }
  for (int64_t i = args.rotary_dim; i < args.head_dim; ++i) y[i] = T(element(i));
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
