// Rotary embedding on the host: tokens in parallel, heads one after the other.
#include <cstring>

#include "core/parallel.h"
#include "ops/rotary.h"

namespace eet {

// The layout is a constant in each loop, so that both vectorise.
template <bool kInterleaved, typename T>
static void RotateHead(const T* x, const float* table, T* y, int64_t head_dim, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) RotatePair(x, table, y, i, pairs, kInterleaved);
  std::memcpy(y + 2 * pairs, x + 2 * pairs, (head_dim - 2 * pairs) * sizeof(T));
}

template <typename T>
static void RotateToken(const RotaryArgs<T>& args, int64_t token) {
  const auto rotate = args.interleaved ? RotateHead<true, T> : RotateHead<false, T>;
  const float* table = args.table + token * args.pairs * 2;
  for (int64_t head = 0; head < args.heads; ++head) {
    const int64_t offset = (token * args.heads + head) * args.head_dim;
    rotate(args.x + offset, table, args.y + offset, args.head_dim, args.pairs);
  }
}

template <typename T>
void Rotary(Stream stream, const RotaryArgs<T>& args) {
  const int64_t grain = 1 + (1 << 14) / (args.heads * args.head_dim + 1);
  ParallelRanges(stream, args.tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) RotateToken(args, token);
  });
}

template void Rotary(Stream, const RotaryArgs<float>&);
template void Rotary(Stream, const RotaryArgs<bfloat16>&);
template void Rotary(Stream, const RotaryArgs<float16>&);

}  // namespace eet
