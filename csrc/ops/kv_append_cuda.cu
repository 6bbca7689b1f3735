// Cache append on the GPU. One warp per head of a token, for its key and its value.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/round.h"
#include "core/vector.cuh"
#include "ops/kv_append.h"

namespace eet {

constexpr int kWarps = 4;

// kWidth elements per access: a vector where heads are aligned, else one.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kWarps* kWarpSize) KvAppendKernel(KvAppendArgs<T> args) {
  struct alignas(kWidth * sizeof(T)) Pack {
    T values[kWidth];
  };
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (index >= args.tokens * args.kv_heads) return;
  const int64_t slot = CacheSlot(args, index / args.kv_heads);
  if (slot < 0) return;
  const int64_t from = index * args.head_dim;
  const int64_t to = (slot + index % args.kv_heads * args.page_size) * args.head_dim;
  const int64_t packs = args.head_dim / kWidth;
  // Key and value in one loop: at 16 packs a head, all lanes have one.
  for (int64_t i = threadIdx.x % kWarpSize; i < 2 * packs; i += kWarpSize) {
    const bool key = i < packs;
    const Pack* source = reinterpret_cast<const Pack*>((key ? args.k_new : args.v_new) + from);
    Pack* target = reinterpret_cast<Pack*>((key ? args.k : args.v) + to);
    const int64_t pack = key ? i : i - packs;
    target[pack] = source[pack];
  }
}

template <typename T>
void KvAppend(Stream stream, const KvAppendArgs<T>& args) {
  const int64_t heads = args.tokens * args.kv_heads;
  if (heads == 0 || args.head_dim == 0) return;
  constexpr int kVector = Vector<T>::kSize;
  const bool aligned = args.head_dim % kVector == 0 && IsAligned16(args.k_new) &&
                       IsAligned16(args.v_new) && IsAligned16(args.k) && IsAligned16(args.v);
  const int64_t blocks = CeilDiv(heads, kWarps);
  auto kernel = aligned ? KvAppendKernel<T, kVector> : KvAppendKernel<T, 1>;
  LaunchKernel(kernel, {.grid = dim3(blocks), .block = dim3(kWarps * kWarpSize)}, stream, args);
}

template void KvAppend(Stream, const KvAppendArgs<float>&);
template void KvAppend(Stream, const KvAppendArgs<bfloat16>&);
template void KvAppend(Stream, const KvAppendArgs<float16>&);

}  // namespace eet
