// Ordered reductions over a warp and a block: the same input gives the same bits.
#pragma once

#include <cuda_runtime.h>

namespace eet {

constexpr int kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
  static constexpr float kIdentity = 0.0f;
};

struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
  static constexpr float kIdentity = -INFINITY;
};

// Every lane gets the result over the warp.
template <typename Op>
__device__ float WarpReduce(float value, Op op = {}) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = op(value, __shfl_xor_sync(kFullMask, value, offset));
  }
  return value;
}

// Every thread gets the result over the block, whose size is a multiple of the warp's.
template <typename Op>
__device__ float BlockReduce(float value, Op op = {}) {
  __shared__ float partial[32];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int num_warps = blockDim.x / kWarpSize;
  value = WarpReduce(value, op);
  __syncthreads();  // an earlier reduction may still be read
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return WarpReduce(lane < num_warps ? partial[lane] : Op::kIdentity, op);
}

}  // namespace eet
