// Cache append on the host: tokens in parallel.
#include <cstring>

#include "core/parallel.h"
#include "ops/kv_append.h"

namespace eet {

template <typename T>
static void AppendToken(const KvAppendArgs<T>& args, int64_t token) {
  const int64_t slot = CacheSlot(args, token);
  if (slot < 0) return;
  for (int64_t head = 0; head < args.kv_heads; ++head) {
    const int64_t from = (token * args.kv_heads + head) * args.head_dim;
    const int64_t to = (slot + head * args.page_size) * args.head_dim;
    std::memcpy(args.k + to, args.k_new + from, args.head_dim * sizeof(T));
    std::memcpy(args.v + to, args.v_new + from, args.head_dim * sizeof(T));
  }
}

template <typename T>
void KvAppend(Stream stream, const KvAppendArgs<T>& args) {
  const int64_t grain = 1 + (1 << 14) / (args.kv_heads * args.head_dim + 1);
  ParallelRanges(stream, args.tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) AppendToken(args, token);
  });
}

template void KvAppend(Stream, const KvAppendArgs<float>&);
template void KvAppend(Stream, const KvAppendArgs<bfloat16>&);
template void KvAppend(Stream, const KvAppendArgs<float16>&);

}  // namespace eet
