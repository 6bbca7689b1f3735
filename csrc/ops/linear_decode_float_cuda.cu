// Linear for few rows on the GPU, float32. One warp per pair of adjacent outputs; its lanes deal
// the columns among themselves four at a time, and fold their sums in a fixed order.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/round.h"
#include "ops/linear_decode.cuh"

namespace eet {

constexpr int kWarps = 4;
constexpr int kUnroll = 4;  // loads of each row under way

__device__ __forceinline__ float AddProducts(float sum, const uint4& a, const uint4& b) {
  sum = fmaf(__uint_as_float(a.x), __uint_as_float(b.x), sum);
  sum = fmaf(__uint_as_float(a.y), __uint_as_float(b.y), sum);
  sum = fmaf(__uint_as_float(a.z), __uint_as_float(b.z), sum);
  return fmaf(__uint_as_float(a.w), __uint_as_float(b.w), sum);
}

template <typename Y, int kTokens>
__global__ void __launch_bounds__(kWarps* kWarpSize)
    LinearDecodeFloatKernel(LinearArgs<float, Y> args) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t out = 2 * (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize);
  const int64_t first_row = int64_t{blockIdx.y} * kTokens;
  if (out >= args.out) return;
  const float* even = args.kernel + out * args.in;
  const float* odd = args.kernel + min(out + 1, args.out - 1) * args.in;

  float sums[2][kTokens] = {};
  constexpr int kStep = 4 * kWarpSize;
  for (int64_t first = lane * 4; first < args.in; first += kUnroll * kStep) {
    uint4 weights[kUnroll][2];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t col = first + i * kStep;
      weights[i][0] = LoadStreamed(even + col, col < args.in);
      weights[i][1] = LoadStreamed(odd + col, col < args.in);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t col = first + i * kStep;
#pragma unroll
      for (int token = 0; token < kTokens; ++token) {
        const int64_t row = first_row + token;
        const uint4 x = LoadReused(args.x + row * args.in + col, row < args.rows && col < args.in);
        sums[0][token] = AddProducts(sums[0][token], weights[i][0], x);
        sums[1][token] = AddProducts(sums[1][token], weights[i][1], x);
      }
    }
  }
#pragma unroll
  for (int token = 0; token < kTokens; ++token) {
    const float first = WarpReduce<Sum>(sums[0][token]), second = WarpReduce<Sum>(sums[1][token]);
    if (lane == token && first_row + token < args.rows) {
      StorePair(args, first_row + token, out, first, second);
    }
  }
}

template <int kTokens, typename Y>
static void Launch(Stream stream, const LinearArgs<float, Y>& args) {
  const dim3 grid(CeilDiv(args.out, 2 * kWarps), CeilDiv(args.rows, kTokens));
  LaunchKernel(LinearDecodeFloatKernel<Y, kTokens>,
               {.grid = grid, .block = dim3(kWarps * kWarpSize)}, stream, args);
}

template <typename Y>
void LinearDecodeFloat(Stream stream, const LinearArgs<float, Y>& args) {
  if (args.rows == 1) {
    Launch<1>(stream, args);
  } else if (args.rows <= 4) {
    Launch<4>(stream, args);
  } else {
    Launch<8>(stream, args);
  }
}

template void LinearDecodeFloat(Stream, const LinearArgs<float>&);

}  // namespace eet
