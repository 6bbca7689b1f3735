// Rotary embedding on the GPU. One warp per head of a token.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/round.h"
#include "ops/rotary.h"

namespace eet {

constexpr int kWarps = 4;

template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpSize) RotaryKernel(RotaryArgs<T> args) {
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (index >= args.tokens * args.heads) return;
  const T* x = args.x + index * args.head_dim;
  const float* table = args.table + index / args.heads * args.pairs * 2;
  T* y = args.y + index * args.head_dim;
  const int64_t lane = threadIdx.x % kWarpSize;
  for (int64_t i = lane; i < args.pairs; i += kWarpSize) {
    RotatePair(x, table, y, i, args.pairs, args.interleaved);
  }
  for (int64_t i = 2 * args.pairs + lane; i < args.head_dim; i += kWarpSize) y[i] = x[i];
}

template <typename T>
void Rotary(Stream stream, const RotaryArgs<T>& args) {
  const int64_t heads = args.tokens * args.heads;
  if (heads == 0 || args.head_dim == 0) return;
  const int64_t blocks = CeilDiv(heads, kWarps);
  LaunchKernel(RotaryKernel<T>, {.grid = dim3(blocks), .block = dim3(kWarps * kWarpSize)}, stream,
               args);
}

template void Rotary(Stream, const RotaryArgs<float>&);
template void Rotary(Stream, const RotaryArgs<bfloat16>&);
template void Rotary(Stream, const RotaryArgs<float16>&);

}  // namespace eet
