// What the streaming kernels of linear share.
#pragma once

#include <cstdint>

#include "core/reduce.cuh"
#include "ops/linear_cuda.h"

namespace eet {

// Sixteen bytes of weights, read once and not kept in the first cache; zeros where not `valid`.
// Volatile, so that loads stay in front of the products that they are ahead of.
__device__ __forceinline__ uint4 LoadStreamed(const void* pointer, bool valid) {
  uint4 words;
  asm volatile(
      "{\n"
      "  .reg .pred valid;\n"
      "  setp.ne.b32 valid, %5, 0;\n"
      "  mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
      "  @valid ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=&r"(words.x), "=&r"(words.y), "=&r"(words.z), "=&r"(words.w)
      : "l"(pointer), "r"(int(valid)));
  return words;
}

// The same of activations, which other blocks of the multiprocessor read too.
__device__ __forceinline__ uint4 LoadReused(const void* pointer, bool valid) {
  uint4 words;
  asm volatile(
      "{\n"
      "  .reg .pred valid;\n"
      "  setp.ne.b32 valid, %5, 0;\n"
      "  mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
      "  @valid ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "=&r"(words.x), "=&r"(words.y), "=&r"(words.z), "=&r"(words.w)
      : "l"(pointer), "r"(int(valid)));
  return words;
}

// One warp per pair of adjacent outputs, on ordinary cores: float32 has no tensor cores of its
// precision.
template <typename Y>
void LinearDecodeFloat(Stream stream, const LinearArgs<float, Y>& args);

}  // namespace eet
