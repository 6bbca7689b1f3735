// What the lanes of a warp tell each other.
#pragma once

#include <cstdint>

#include "core/reduce.cuh"

namespace eet {

// The value of lane 0, so that the compiler knows it to be uniform: else it serializes wgmma.
__device__ __forceinline__ int Uniform(int value) { return __shfl_sync(kFullMask, value, 0); }

// words[j] of lane l becomes words[l] of lane j, among four neighbours.
__device__ __forceinline__ void TransposeFour(uint32_t (&words)[4]) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = threadIdx.x & step;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j & step) continue;
      const uint32_t other = __shfl_xor_sync(kFullMask, upper ? words[j] : words[j + step], step);
      (upper ? words[j] : words[j + step]) = other;
    }
  }
}

}  // namespace eet
